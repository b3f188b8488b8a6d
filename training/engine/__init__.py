"""Training itself: the loop, its steps and optimisers, and what watches over them."""
