"""bert_mtl_demo: one BERT, three tasks, and what gradient surgery does to it."""
