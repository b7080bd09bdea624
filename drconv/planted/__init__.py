"""Planted regions: whether a layer can find regions and filters that are known, because another layer has them."""
