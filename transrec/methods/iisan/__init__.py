"""IISAN: a decoupled side network next to frozen backbones, `iisan` (Fu et al., SIGIR 2024; docs/methods.md)."""

from transrec.methods.iisan.method import IISAN, SideItemEncoder
from transrec.methods.iisan.network import SideNetwork
from transrec.methods.iisan.options import IISANOptions

__all__ = ["IISAN", "IISANOptions", "SideItemEncoder", "SideNetwork"]
