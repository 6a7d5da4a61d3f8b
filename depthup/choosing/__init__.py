"""Which layers and which method for a model and a budget: candidates, their losses before and after short training,
what was measured before, and a verdict in words."""
