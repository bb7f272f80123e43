"""One optimizer step and what it is made of: plain and cached gradients, optimizer, EMA, compilation, prefetch."""
