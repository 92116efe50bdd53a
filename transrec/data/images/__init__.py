"""Item images: an LMDB file with one small RGB image an item, made once from a folder, a zip or an older LMDB."""
