"""How good is it, how long will it take: judges of trained models, and the cost of training."""
