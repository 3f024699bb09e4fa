"""Where songs come from: folders, datasets, and the captions that people keep beside them."""
