"""Item images: an LMDB file with one small RGB image per item, built once from a folder, a zip or an older LMDB."""
