"""audiocraft's checkpoint format: names of weights, `xp.cfg`, and files that are read without running their code."""
