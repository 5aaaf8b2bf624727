"""What a merge costs, from its plan alone: passes over the inputs, bytes, and a memory ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nan_merge.blocks import cut
from nan_merge.fingerprint import remembered_fingerprint
from nan_merge.inner_products import NO_PRODUCTS
from nan_merge.layout import AlignedTensor, ShardPlan
from nan_merge.lora_tensor import PRODUCT_ELEMENTS, LoraTensor
from nan_merge.measure import all_wanted_products, merged_groups
from nan_merge.measured import is_compiled, method_of, needs
from nan_merge.plan import MergePlan
from nan_merge.raw_runs import RAW_RUN_ELEMENTS
from nan_merge.row_mapped import RowMappedTensor
from nan_merge.safetensors_file import MAX_REMEMBERED_BYTES, TensorInfo

# Private memory of a Python process that has imported this package and its compiled kernels, and
# what torch adds to it. Forked processes share most of it, but each counts it in RssAnon.
PROCESS_BYTES, TORCH_BYTES = 64 << 20, 128 << 20
# Copies that a method makes for every model of what it is given at once: a block, or a whole
# tensor. Those that it makes once are in its row.
COPIES_PER_MODEL = 3
# Matrices of (inputs, inputs) and of a weight's own shape that RegMean holds in float64.
GRAM_COPIES, WEIGHT_COPIES = 5, 4
# Histograms of magnitudes and what waits to be added up.
COUNTS_BYTES_PER_MODEL = 2 * (1 << 16) * 8
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8


@dataclass(frozen=True)
class Pass:
    """One way through the inputs.

    Attributes:
        label: What for: that of its tasks.
        read_bytes: How much it reads.
    """

    label: str
    read_bytes: int


def list_passes(plan: MergePlan) -> list[Pass]:
    """Everything that a merge reads, in order; the last pass of tensors writes the result."""
    merged = sum(stored_bytes(tensor) for group in merged_groups(plan) for tensor in group)
    whole = sum(stored_bytes(tensor) for tensor in plan.tensors)
    names = [tensor.name for tensor in plan.tensors]
    statistics = sum(_stored_bytes_of(i) for r in plan.data_statistics(names).values() for i in r)
    recipe = plan.recipe
    found: list[Pass] = []
    if all_wanted_products([recipe]) != NO_PRODUCTS:
        found.append(Pass("norms", merged))
    if needs(recipe, "magnitude_threshold"):
        found += [Pass("magnitudes", merged), Pass("thresholds", merged)]
    if needs(recipe, "tensor_threshold"):
        found.append(Pass("thresholds", 2 * merged))  # two rounds in each tensor
    if needs(recipe, "kept_sums"):
        found.append(Pass("kept sums", merged))
    if needs(recipe, "majority_sign"):
        found.append(Pass("signs", merged))
    found.append(Pass("merge", whole + statistics))
    if unread := _bytes_of_unhashed(plan):
        found.append(Pass("fingerprints", unread))
    return found


def _bytes_of_unhashed(plan: MergePlan) -> int:
    """Inputs with tensors that the merge leaves out are read once more, to be fingerprinted."""
    kept = {tensor.name for tensor in plan.tensors}
    unread = [each for each in plan.inputs if each.tensors.keys() != kept]
    if plan.statistics:  # which must belong to these very models
        unread = [*plan.models, *(each.checkpoint for each in plan.statistics)]
    return sum(
        _stored_bytes_of(tensor)
        for checkpoint in unread
        if not remembered_fingerprint(checkpoint)
        for tensor in checkpoint.tensors.values()
    )


def stored_bytes(tensor: AlignedTensor) -> int:
    """Bytes that lie in files for one tensor of all inputs."""
    return sum(map(_stored_bytes_of, tensor.inputs))


def _stored_bytes_of(tensor: TensorInfo) -> int:
    if isinstance(tensor, LoraTensor):
        return sum(map(_stored_bytes_of, (tensor.base, tensor.a, tensor.b)))
    if isinstance(tensor, RowMappedTensor):
        return tensor.num_elements * tensor.own.stored_dtype.itemsize
    return tensor.num_bytes


def memory_ceiling(plan: MergePlan, workers: int) -> int:
    """The most private memory, in bytes, that a merge takes: RssAnon summed over its processes.

    For a method that the compiled kernel does, workers are threads of one process; for another,
    they are processes that it forks, each with torch. To what these take comes for each worker the
    *work space* of the tensor that it is at: for W workers, that of the W largest tensors of one
    file. A tensor's work space is

    - what is read at once of every input, in its type, and what is written at once;
    - for the kernel, as much again in float32, and histograms where magnitudes are counted;
    - for torch, the same cut to a block, as float32, once for every input and ``copies +
      COPIES_PER_MODEL x models`` times for the method, whose row says how many copies it makes;
    - where data gave statistics, those of every model, and for RegMean its normal equations;
    - where an adapter or a row map computes what is read, that again in float32, and factors.

    Runs and blocks are of a fixed size for methods whose unit is the element, and nearly so for
    rows; a method whose unit is the matrix takes every tensor whole. So for the first two
    the ceiling does not depend on the size of the models.

    Args:
        plan: The merge.
        workers: Threads or processes of each task.
    """
    compiled = is_compiled(plan.recipe)
    space = partial(_kernel_space) if compiled else partial(_torch_space, plan=plan)
    spaces = [
        sum(sorted(space(tensor, shard=shard) for tensor in shard.tensors)[-workers:])
        for shard in plan.shards
    ]
    computed = any(type(info) is not TensorInfo for t in plan.tensors for info in t.inputs)
    process = PROCESS_BYTES + (TORCH_BYTES if computed or not compiled else 0)
    # One worker is this process itself.
    processes = 1 + workers if workers > 1 and not compiled else 1
    counting = workers * COUNTS_BYTES_PER_MODEL * len(plan.models) if _counts(plan) else 0
    return processes * process + counting + max(spaces, default=0)


def _counts(plan: MergePlan) -> bool:
    return needs(plan.recipe, "magnitude_threshold") or needs(plan.recipe, "tensor_threshold")


def _kernel_space(tensor: AlignedTensor, shard: ShardPlan) -> int:
    run = min(RAW_RUN_ELEMENTS, tensor.reference.num_elements)
    computed = sum(_computed_space(each, run) for each in tensor.inputs)
    # The kernel's rows and what is written are as wide as float32 whatever is stored.
    rows = (len(tensor.inputs) + 1) * RAW_RUN_ELEMENTS * FLOAT32_BYTES
    stored = sum(each.dtype.itemsize for each in tensor.inputs)
    return rows + run * (stored + tensor.output_dtype(shard.dtype).itemsize) + computed


def _torch_space(tensor: AlignedTensor, shard: ShardPlan, plan: MergePlan) -> int:
    method = method_of(plan.recipe)
    chunk = cut([tensor], method.unit)[0]
    run = max((run.count for run in chunk.runs()), default=0)
    block = min(chunk.block_elements, run)
    dtypes = [each.dtype for each in tensor.inputs]
    read = sum(dtype.itemsize for dtype in dtypes) + tensor.output_dtype(shard.dtype).itemsize
    copies = len(dtypes) + method.copies + COPIES_PER_MODEL * len(tensor.finetuned)
    computed = sum(_computed_space(each, run) for each in tensor.inputs)
    statistics = _statistics_space(tensor, plan, run)
    return run * read + block * copies * FLOAT32_BYTES + computed + statistics


def _statistics_space(tensor: AlignedTensor, plan: MergePlan, run: int) -> int:
    infos = plan.data_statistics([tensor.name]).get(tensor.name, ())
    if not infos:
        return 0
    # Each is read whole or in runs, and then in float32.
    taken = sum(i.dtype.itemsize + FLOAT32_BYTES for i in infos)
    if method_of(plan.recipe).reads != "gram":
        return run * taken
    num_inputs = infos[0].shape[0]
    equations = GRAM_COPIES * num_inputs**2 + WEIGHT_COPIES * tensor.reference.num_elements
    return num_inputs**2 * taken + equations * FLOAT64_BYTES


def _computed_space(tensor: TensorInfo, run: int) -> int:
    if isinstance(tensor, LoraTensor):
        factors = tensor.a.num_elements + tensor.b.num_elements
        own = max(PRODUCT_ELEMENTS, tensor.num_elements // max(tensor.shape[0], 1))
        return (3 * run + 2 * own + 2 * factors) * tensor.dtype.itemsize + MAX_REMEMBERED_BYTES
    if isinstance(tensor, RowMappedTensor):
        return 3 * run * 8  # a mean of rows is taken in float64
    return 0
