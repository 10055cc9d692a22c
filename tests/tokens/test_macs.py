"""Published multiply-accumulate counts, to the digits that were published."""

import pytest
import torch

from edgevit.adapters.timm_vit import TimmBlock
from edgevit.reduce import dense_macs
from edgevit.stages import Stage
from edgevit.tokens.macs import blocks_macs
from edgevit.tokens.schedule import count_tokens, parse_schedule

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
ROWS = [
    *((size, f"tome:r={r}", row[i], row[3]) for r, row in TOME.items() for i, size in enumerate("TSB")),
    *(("L", f"tome:r={r}", *row) for r, row in TOME_L.items()),
    *((size, f"evit:keep={k}", row[i], row[3]) for k, row in EVIT.items() for i, size in enumerate("TSB")),
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
