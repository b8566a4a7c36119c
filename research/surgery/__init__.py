"""The surgery factorial: is gradient surgery more than a reweighting of the tasks by noise?

`python -m research.surgery` trains arms that differ in nothing but what is done to the tasks'
gradients, surgery among sham surgeries, and writes surgery.md. One longer run of the plain sum
gives the cosines on which the count law is checked.
"""
