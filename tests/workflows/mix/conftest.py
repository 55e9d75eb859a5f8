"""What the tests of a mix share."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Search, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.results.record import as_object
from glue_cli.workflows.mix.mix import mix

WRITING = Writing(memory_bytes=1 << 20, hashing=False)


@pytest.fixture
def blend(tmp_path, run):
    """Mix; return the result and the prior's tensors."""

    def blend(experts, spec=None, method=None, alpha=None, name="prior", history=None, seed=None, **options):
        output = tmp_path / f"{name}.safetensors"
        rules = TensorRules(**{key: options.pop(key) for key in [*options] if key in TensorRules.__dataclass_fields__})
        plan = plan_mix(
            experts,
            Outputs(output, history),
            Coefficients(method or GIVEN, alpha),
            rules=rules,
            writing=replace(WRITING, dtype=options.pop("dtype", None)),
            search=Search(**options),
            spec=spec,
            seed=seed or (spec.seed if spec else 0),
        )
        result = as_object(mix(plan, Run("cpu", cache=run.cache, history=history, progress=run.progress)))
        return result, load_file(output)

    return blend
