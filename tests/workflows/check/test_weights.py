"""One pass over the experts' weights: inner products against torch's, NaN where they are, sha256 of the files."""

import hashlib
import os

import pytest
import torch

from glue_cli.blend.relatedness import cosines_of
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.progress import Advanced
from glue_cli.workflows.check import weights as weights_module
from glue_cli.workflows.check.weights import NonFinite, read_weights


def tensors_of(seed, **others):
    generator = torch.Generator().manual_seed(seed)
    drawn = {"a.weight": (30, 20), "b.weight": (7, 2, 2), "b.bias": (7,), "bn.running_var": (7,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in drawn.items()} | others


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in ("a.weight", "b.weight")])


@pytest.fixture(params=[7, 131_072])
def chunk(request, monkeypatch):
    """The number of elements that are read at once."""
    monkeypatch.setattr(weights_module, "CHUNK", request.param)


def test_products_are_those_of_the_matrices(save, chunk):
    drawn = [tensors_of(k, counter=torch.tensor(k)) for k in range(3)]
    found = read_weights([save(str(k), tensors) for k, tensors in enumerate(drawn)])
    rows = torch.stack([flat(tensors) for tensors in drawn])
    torch.testing.assert_close(found.gram, rows @ rows.T, rtol=1e-12, atol=0)
    first = torch.stack([tensors["a.weight"].double().flatten() for tensors in drawn])
    smallest = min(torch.cosine_similarity(first[i], first[j], dim=0).item() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert found.smallest_cosines == pytest.approx({"a.weight": smallest})  # the other one has too few elements


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_count_by_their_values(save, dtype):
    drawn = [{name: t.to(dtype) for name, t in tensors_of(k).items()} for k in range(2)]
    found = read_weights([save("a", drawn[0]), save("b", drawn[1])])
    assert found.gram[0, 1].item() == pytest.approx((flat(drawn[0]) @ flat(drawn[1])).item(), rel=1e-12)


def test_experts_near_each_other_are_told_apart(save):
    base = tensors_of(0)
    other = {name: tensor + 1e-6 * tensors_of(1)[name] for name, tensor in base.items()}
    gram = read_weights([save("a", base), save("b", other)]).gram
    wanted = (flat(base) - flat(other)).square().sum().item()
    assert (gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]).item() == pytest.approx(wanted, rel=1e-2)


def test_nan_and_infinity_are_counted_where_they_are(save, chunk):
    bad = tensors_of(1)
    bad["a.weight"][3, 4:6] = torch.nan
    bad["b.bias"][2] = -torch.inf
    bad["bn.running_var"][0] = torch.nan
    found = read_weights([save("a", tensors_of(0)), save("b", bad), save("c", tensors_of(2))])
    assert found.non_finite[0] == found.non_finite[2] == []
    wanted = {NonFinite("a.weight", 2, 0), NonFinite("b.bias", 0, 1), NonFinite("bn.running_var", 1, 0)}
    assert set(found.non_finite[1]) == wanted
    assert torch.isfinite(found.gram[0, 2]) and not torch.isfinite(found.gram[0, 1])


def test_infinity_in_a_mask_that_is_copied_is_no_fault(save):
    mask = torch.zeros(20, 20).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    experts = [save(str(k), tensors_of(k, mask=mask)) for k in range(2)]
    found = read_weights(experts, copied={"mask"})
    assert not any(found.non_finite) and torch.isfinite(found.gram).all()
    assert [tensor.tensor for tensor in read_weights(experts).non_finite[0]] == ["mask"]
    broken = save("2", tensors_of(2, mask=torch.full((20, 20), torch.nan)))
    assert read_weights([experts[0], broken], copied={"mask"}).non_finite[1] == [NonFinite("mask", 400, 0)]


def test_tensors_that_differ_in_shape_are_read_but_not_compared(save):
    one, other = (
        tensors_of(0),
        tensors_of(1, **{"b.weight": torch.full((2, 2), torch.inf), "c.weight": torch.ones(2, 2)}),
    )
    found = read_weights([save("a", one), save("b", other)])
    assert found.gram[0, 0].item() == pytest.approx(one["a.weight"].double().square().sum().item())
    assert found.non_finite[1] == [NonFinite("b.weight", 0, 4)]


def test_digests_are_those_of_the_files_whatever_their_order(save_in_order, save, save_shards, chunk):
    tensors = tensors_of(0)
    turned = save_in_order("turned", dict(reversed(tensors.items())))
    experts = [save("plain", tensors), turned, save_shards("shards", tensors)]
    found = read_weights(experts)
    joined = [b"".join(file.read_bytes() for file in expert.files) for expert in experts]
    assert found.digests == [hashlib.sha256(data).hexdigest() for data in joined]
    assert cosines_of(found.gram).min().item() == pytest.approx(1)


def test_a_file_that_changes_meanwhile_is_told_of_and_nothing_hangs(save):
    experts = [save("a", tensors_of(0)), save("b", tensors_of(1))]
    save("b", tensors_of(2, more=torch.zeros(3)))
    with pytest.raises(CheckpointError, match="changed"):
        read_weights(experts)


def test_a_file_that_changes_while_it_is_read_is_told_of_though_its_hash_is_remembered(save, monkeypatch):
    monkeypatch.setattr("glue_cli.checkpoints.digests._TICK_NS", 0)
    expert = save("a", tensors_of(0))
    first = StreamedHash(expert)
    first.finish()
    again = StreamedHash(expert, remembered=first.worth_remembering())

    def touch(event):
        if isinstance(event, Advanced):
            os.utime(expert.files[0])

    assert again.is_remembered
    with pytest.raises(CheckpointError, match="changed"):
        read_weights([expert], hashes=[again], progress=touch)
