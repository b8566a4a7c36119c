"""Stages of training before the tasks: from an encoder to one that suits them better.

Vocabulary: a *stage* is data and an *objective*, a loss with a head of its own that is thrown away
afterwards; a *chain* is the stages of a run, in order, each starting from the encoder that the one
before it left; an *entry* of the cache is the encoder behind a chain's first n stages.

    mlm         masked words of plain texts            Devlin et al. 2018; Liu et al. 2019
    nli         entailment or contradiction            Reimers & Gurevych 2019
    simcse      paraphrases against in-batch others    Gao et al. 2021, supervised
    simcse_sst  the same, and SST sentences against their own second reading (unsupervised)

What a stage does to an encoder depends on the settings, the seed and the data alone, so runs that
share the beginning of a chain share the entries of the cache.
"""

from bert_mtl_demo.pretraining.pipeline import pretrained

__all__ = ["pretrained"]
