"""MusicGen: its parts loaded separately, codes, the delay pattern, text states and adapters."""
