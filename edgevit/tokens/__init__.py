"""Token reduction as pure functions on tensors: no nn.Module, no model names.

METHODS is the whole list. A method is one file with one class (protocol: `edgevit.tokens.protocol.Method`), one line
here, one test.
"""

from typing import TYPE_CHECKING

from edgevit.errors import ScheduleError
from edgevit.names import did_you_mean, named

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Method

METHODS = {
    "tome": "edgevit.tokens.tome:ToMe",
    "evit": "edgevit.tokens.evit:EViT",
    "tomecis": "edgevit.tokens.tomecis:ToMeCIS",
    "pitome": "edgevit.tokens.pitome:PiToMe",
    "mctf": "edgevit.tokens.mctf:MCTF",
    "tofu": "edgevit.tokens.tofu:ToFu",
    "atm": "edgevit.tokens.atm:ATM",
    "diffrate": "edgevit.tokens.diffrate:DiffRate",
    "tps": "edgevit.tokens.tps:TPS",
    "ats": "edgevit.tokens.ats:ATS",
    "zerotprune": "edgevit.tokens.zerotprune:ZeroTPrune",
    "tokentransforming": "edgevit.tokens.tokentransforming:TokenTransforming",
    "expedit": "edgevit.tokens.expedit:Expedit",
    "fastervlm": "edgevit.tokens.fastervlm:FasterVLM",
    "vtccls": "edgevit.tokens.vtccls:VtcCls",
    "hired": "edgevit.tokens.hired:HiRed",
    "hiprune": "edgevit.tokens.hiprune:HiPrune",
    "fopru": "edgevit.tokens.fopru:FoPru",
    "todre": "edgevit.tokens.todre:ToDre",
    "dynamicvit": "edgevit.tokens.dynamicvit:DynamicViT",
    "dtem": "edgevit.tokens.dtem:DTEM",
    "sit": "edgevit.trained.sit:SiTSchedule",
    "stvit": "edgevit.trained.stvit:STViTSchedule",
    "lookupvit": "edgevit.trained.lookupvit:LookupViTSchedule",
    "dtop": "edgevit.trained.dtop:DToPSchedule",
}


def method(name: str) -> "type[Method]":
    """The class of a method by its schedule name."""
    if name not in METHODS:
        raise ScheduleError(
            f"unknown reduction method {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}, none"
        )
    found: type[Method] = named(METHODS[name])
    return found
