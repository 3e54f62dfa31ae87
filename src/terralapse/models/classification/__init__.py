"""Classes of whole images."""
