"""One paper, one file. A model imports layers and tasks, never another model."""
