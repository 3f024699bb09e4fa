"""The token store: codes and text states, the split into training and held-out clips, the tables of a training."""
