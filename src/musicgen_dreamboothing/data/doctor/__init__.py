"""The doctor: examines prepared clips and reports what would hurt a training."""
