"""Do mistakes in paraphrase come from shared words?

`python -m research.overlap` reads the answers that a study kept of para's dev set, sets them
against a system that sees nothing but how many words a pair shares, and writes overlap.md.
"""
