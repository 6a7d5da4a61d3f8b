"""What a run takes before it is run: FLOPs, memory, time and cost from shapes. No weights are read, no torch is loaded.

``depthup plan`` prints it; ``docs/plan.md`` has the formulas and says what is assumed.
"""
