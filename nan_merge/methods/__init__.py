"""The table of merge methods. To add one: a file beside this, a row here, a test."""

from functools import partial
from typing import Annotated

from pydantic import Field

from nan_merge.methods.average import AverageOptions, average, average_program
from nan_merge.methods.breadcrumbs import (
    BreadcrumbsOptions,
    BreadcrumbsTiesOptions,
    breadcrumbs,
    breadcrumbs_row,
    breadcrumbs_ties,
)
from nan_merge.methods.dare import (
    DareLinearOptions,
    DareTiesOptions,
    dare_linear,
    dare_program,
    dare_row,
    dare_ties,
)
from nan_merge.methods.della import (
    DellaLinearOptions,
    DellaTiesOptions,
    della_linear,
    della_row,
    della_ties,
)
from nan_merge.methods.fisher import FisherOptions, fisher
from nan_merge.methods.isotropic import COST as ISO_COST
from nan_merge.methods.isotropic import CTS_COST, IsoCOptions, IsoCtsOptions, iso_c, iso_cts
from nan_merge.methods.matrices import SVD_COPIES
from nan_merge.methods.method import Context, MergeMethod, TensorNorms, refuse_negative
from nan_merge.methods.model_stock import NAN_REFUSED as NAN_ON_MODEL_STOCK
from nan_merge.methods.model_stock import (
    ModelStockOptions,
    model_stock,
    model_stock_row,
    refuse_unequal,
)
from nan_merge.methods.nuslerp import NuslerpOptions, nuslerp, nuslerp_row
from nan_merge.methods.passthrough import NAN_REFUSED as NAN_ON_PASSTHROUGH
from nan_merge.methods.passthrough import PassthroughOptions, passthrough
from nan_merge.methods.regmean import RegmeanOptions, regmean
from nan_merge.methods.sce import SceOptions, sce, sce_row
from nan_merge.methods.slerp import SlerpOptions, slerp
from nan_merge.methods.task_arithmetic import (
    TaskArithmeticOptions,
    task_arithmetic,
    task_arithmetic_program,
)
from nan_merge.methods.ties import TiesOptions, ties, ties_program, ties_row
from nan_merge.methods.tsv import COST as TSV_COST
from nan_merge.methods.tsv import TsvOptions, tsv
from nan_merge.methods.wudi import COST as WUDI_COST
from nan_merge.methods.wudi import WudiOptions, wudi

METHODS: dict[str, MergeMethod] = {
    "average": MergeMethod(
        AverageOptions,
        average,
        paper="arXiv:2203.05482",
        needs_base=False,
        weights_sum_to_one=True,
        program=average_program,
    ),
    "task_arithmetic": MergeMethod(
        TaskArithmeticOptions,
        task_arithmetic,
        paper="arXiv:2212.04089",
        program=task_arithmetic_program,
    ),
    "ties": MergeMethod(
        TiesOptions,
        ties,
        paper="arXiv:2306.01708",
        needs=("magnitude_threshold", "majority_sign"),
        varies=ties_row,
        program=ties_program,
    ),
    "dare_linear": MergeMethod(
        DareLinearOptions,
        dare_linear,
        paper="arXiv:2311.03099",
        varies=dare_row,
        program=dare_program,
    ),
    "dare_ties": MergeMethod(
        DareTiesOptions,
        dare_ties,
        paper="arXiv:2311.03099",
        varies=dare_row,
        program=dare_program,
    ),
    "della_linear": MergeMethod(
        DellaLinearOptions, della_linear, paper="arXiv:2406.11617", unit="row", varies=della_row
    ),
    "della_ties": MergeMethod(
        DellaTiesOptions, della_ties, paper="arXiv:2406.11617", unit="row", varies=della_row
    ),
    "breadcrumbs": MergeMethod(
        BreadcrumbsOptions,
        breadcrumbs,
        paper="arXiv:2312.06795",
        unit="matrix",
        varies=breadcrumbs_row,
    ),
    "breadcrumbs_ties": MergeMethod(
        BreadcrumbsTiesOptions,
        breadcrumbs_ties,
        paper="arXiv:2312.06795",
        unit="matrix",
        varies=breadcrumbs_row,
    ),
    "slerp": MergeMethod(
        SlerpOptions,
        slerp,
        paper="doi:10.1145/325334.325242",
        needs=("inner_products",),
        needs_base=False,
        weights_sum_to_one=True,
        fewest_models=2,
        most_models=2,
    ),
    "nuslerp": MergeMethod(
        NuslerpOptions,
        nuslerp,
        paper="github.com/arcee-ai/mergekit",
        needs=("inner_products",),
        needs_base=False,
        weights_sum_to_one=True,
        fewest_models=2,
        most_models=2,
        varies=nuslerp_row,
    ),
    "model_stock": MergeMethod(
        ModelStockOptions,
        model_stock,
        paper="arXiv:2403.19522",
        needs=("inner_products",),
        weights_sum_to_one=True,
        fewest_models=2,
        nan_refused=NAN_ON_MODEL_STOCK,
        refuse=refuse_unequal,
        varies=model_stock_row,
    ),
    "sce": MergeMethod(
        SceOptions,
        sce,
        paper="arXiv:2408.07990",
        needs=("inner_products",),
        weights_sum_to_one=True,
        fewest_models=2,
        refuse=partial(refuse_negative, method="SCE"),
        varies=sce_row,
    ),
    "fisher": MergeMethod(
        FisherOptions,
        fisher,
        paper="arXiv:2111.09832",
        reads="fisher",
        needs_base=False,
        weights_sum_to_one=True,
        refuse=partial(refuse_negative, method="Fisher merging"),
    ),
    "regmean": MergeMethod(
        RegmeanOptions,
        regmean,
        paper="arXiv:2212.09849",
        unit="matrix",
        reads="gram",
        cost="a factorisation of one (inputs, inputs) matrix for every weight",
        needs_base=False,
        weights_sum_to_one=True,
        refuse=partial(refuse_negative, method="RegMean"),
    ),
    "tsv": MergeMethod(
        TsvOptions,
        tsv,
        paper="arXiv:2412.00081",
        unit="matrix",
        copies=SVD_COPIES,
        cost=TSV_COST,
    ),
    "iso_c": MergeMethod(
        IsoCOptions,
        iso_c,
        paper="arXiv:2502.04959",
        unit="matrix",
        copies=SVD_COPIES,
        cost=ISO_COST,
    ),
    "iso_cts": MergeMethod(
        IsoCtsOptions,
        iso_cts,
        paper="arXiv:2502.04959",
        unit="matrix",
        copies=SVD_COPIES,
        cost=CTS_COST,
    ),
    "wudi": MergeMethod(
        WudiOptions,
        wudi,
        paper="arXiv:2503.08099",
        unit="matrix",
        copies=SVD_COPIES,
        cost=WUDI_COST,
    ),
    "passthrough": MergeMethod(
        PassthroughOptions,
        passthrough,
        paper="github.com/arcee-ai/mergekit",
        needs_base=False,
        most_models=1,
        nan_refused=NAN_ON_PASSTHROUGH,
    ),
}

MethodOptions = Annotated[
    AverageOptions
    | TaskArithmeticOptions
    | TiesOptions
    | DareLinearOptions
    | DareTiesOptions
    | DellaLinearOptions
    | DellaTiesOptions
    | BreadcrumbsOptions
    | BreadcrumbsTiesOptions
    | SlerpOptions
    | NuslerpOptions
    | ModelStockOptions
    | SceOptions
    | FisherOptions
    | RegmeanOptions
    | TsvOptions
    | IsoCOptions
    | IsoCtsOptions
    | WudiOptions
    | PassthroughOptions,
    Field(discriminator="name"),
]

__all__ = ["METHODS", "Context", "MergeMethod", "MethodOptions", "TensorNorms"]
