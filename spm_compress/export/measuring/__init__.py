"""How long exported layers and models take, and what they need."""
