"""Files at local paths and in object stores, by one set of words."""
