"""Registry of modalities, the kinds of content that represent items.

A modality is one file of this package: its flags, its features and its tower.
"""

from transrec.modalities.base import MODALITIES, BackboneModality, Modality, ModalityOptions, get, names, register

__all__ = ["MODALITIES", "BackboneModality", "Modality", "ModalityOptions", "get", "names", "register"]
