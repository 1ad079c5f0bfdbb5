"""Train one network; deploy every size of it."""
