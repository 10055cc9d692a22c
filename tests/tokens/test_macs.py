"""Published multiply-accumulate counts, to the digits that were published."""

import pytest
import torch

from edgevit.adapters.timm_vit import TimmBlock
from edgevit.reduce import dense_macs
from edgevit.stages import Stage
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.macs import blocks_macs
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")

NAMES = {
    "T": "deit_tiny_patch16_224",
    "S": "deit_small_patch16_224",
    "B": "deit_base_patch16_224",
    "L": "vit_large_patch16_224",
}
DENSE = {"T": "1.254", "S": "4.599", "B": "17.564", "L": "61.55"}
# r: giga-MACs of DeiT-T, -S, -B, tokens at the end
TOME = {
    4: ("1.086", "4.001", "15.32", 149),
    8: (".924", "3.416", "13.10", 101),
    10: (".846", "3.129", "12.00", 77),
    11: (".807", "2.986", "11.46", 65),
    12: (".769", "2.844", "10.91", 53),
    13: (".731", "2.703", "10.37", 41),
    14: (".694", "2.562", "9.82", 29),
    15: (".657", "2.423", "9.28", 17),
    16: (".622", "2.291", "8.77", 11),
}
TOME_L = {4: ("46.11", 101), 5: ("42.29", 77), 6: ("38.49", 53), 7: ("34.71", 29), 8: ("30.96", 7)}
EVIT = {
    0.9: ("1.092", "4.022", "15.40", 148),
    0.8: (".942", "3.477", "13.33", 105),
    0.7: (".821", "3.029", "11.61", 72),
    0.6: (".715", "2.635", "10.09", 46),
    0.5: (".629", "2.309", "8.82", 28),
}
PITOME = {
    0.975: ("1.087", "4.006", "15.34", 151),
    0.95: (".930", "3.439", "13.19", 111),
    0.925: (".808", "2.991", "11.49", 82),
    0.9: (".700", "2.595", "9.97", 60),
    0.875: (".618", "2.288", "8.78", 44),
}
MCTF = {"r=16": (".697", "2.577", "9.89", 21), "keep=0.65@4,7,10": (".742", "2.744", "10.53", 56)}
# Tokens left before and behind the merge of each of the 12 blocks (DiffRate, appendix), published giga-MACs, tokens.
DIFFRATE = [
    ("T", "197/196/180/157/130/107/86/73/63/51/40/3", "197/187/167/139/114/90/76/66/57/45/37/3", ".655", 3),
    ("T", "197/197/196/186/166/147/117/103/92/80/74/3", "197/196/190/172/154/125/107/96/84/78/70/3", ".809", 3),
    ("T", "197/197/196/194/188/184/178/164/156/137/129/21", "197/197/196/190/186/154/148/156/145/135/125/21",
     "1.003", 21),
    ("S", "197/192/168/143/121/105/92/74/62/45/33/3", "197/180/156/127/109/98/80/66/52/37/31/3", "2.327", 3),
    ("S", "197/192/174/156/131/115/111/99/76/50/39/3", "197/186/160/133/119/107/96/82/66/43/37/3", "2.504", 3),
    ("S", "197/196/182/160/141/127/115/105/88/66/49/3", "197/188/170/147/131/119/109/96/76/54/45/3", "2.709", 3),
    ("S", "197/196/190/168/150/139/129/117/99/78/58/3", "197/194/176/156/141/133/121/107/88/64/56/3", "2.905", 3),
    ("S", "197/197/194/180/160/147/137/129/115/92/76/3", "197/196/186/164/150/141/133/121/103/78/68/3", "3.108", 3),
    ("B", "197/192/172/156/131/107/90/72/56/33/17/3", "197/178/162/141/115/96/78/60/47/21/13/3", "8.73", 3),
    ("B", "197/197/197/188/170/154/139/123/107/72/43/3", "197/197/192/178/158/145/127/111/94/50/35/3", "11.52", 3),
]  # fmt: skip
ALL = ",".join(map(str, range(1, 13)))
ROWS = [
    *((size, f"tome:r={r}", row[i], row[3]) for r, row in TOME.items() for i, size in enumerate("TSB")),
    *(("L", f"tome:r={r}", *row) for r, row in TOME_L.items()),
    *((size, f"evit:keep={k}", row[i], row[3]) for k, row in EVIT.items() for i, size in enumerate("TSB")),
    *((size, f"pitome:ratio={k}", row[i], row[3]) for k, row in PITOME.items() for i, size in enumerate("TSB")),
    *((size, f"mctf:{k}", row[i], row[3]) for k, row in MCTF.items() for i, size in enumerate("TSB")),
    *((size, f"diffrate:m={m},p={p}@{ALL}", giga, last) for size, p, m, giga, last in DIFFRATE),
    *((size, "none", published, 197) for size, published in DENSE.items()),
]


@pytest.fixture(scope="module")
def models():
    """Shapes without weights: (blocks, fixed multiply-accumulates of patch embedding and head)."""
    built = {}
    for size, name in NAMES.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        fixed = 196 * model.patch_embed.proj.weight.numel() + model.head.weight.numel()
        built[size] = [TimmBlock(b) for b in model.blocks], fixed
    return built


@pytest.mark.parametrize(("size", "spec", "published", "last"), ROWS)
def test_count_matches_the_published_one_in_every_digit(models, size, spec, published, last):
    blocks, fixed = models[size]
    counts = count_tokens(parse_schedule(spec), (Stage(blocks, 1, (14, 14)),), fixed)
    giga = counts.macs / 1e9
    digits = len(published.split(".")[1])
    assert abs(giga - float(published)) <= 0.5001 * 10**-digits  # the published number is rounded to its last digit
    assert counts.after[-1] == last


def test_the_counter_of_any_module_agrees_with_the_formula():
    model = timm.create_model(NAMES["T"]).eval()
    blocks = [TimmBlock(b) for b in model.blocks]
    fixed = 196 * model.patch_embed.proj.weight.numel() + model.head.weight.numel()
    assert dense_macs(model, (1, 3, 224, 224)) == fixed + blocks_macs(blocks, 197, (197,) * 12)
