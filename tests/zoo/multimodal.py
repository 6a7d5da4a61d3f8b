"""x"""

SPECIMENS = []
