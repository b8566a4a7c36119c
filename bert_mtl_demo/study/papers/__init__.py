"""The five papers, each a module of its rows."""

from bert_mtl_demo.study.papers import (
    bert_mastery,
    mtl_surgery_mlm,
    optimusbert,
    pals_gradvac,
    sbert_simcse,
)
from bert_mtl_demo.study.published import Paper

PAPERS: dict[str, Paper] = {
    module.PAPER.name: module.PAPER
    for module in (pals_gradvac, optimusbert, bert_mastery, mtl_surgery_mlm, sbert_simcse)
}
