"""Real environments, and families of teachers who act in them.

family.py        what a family is; episodes in lockstep; what teachers show
cartpole.py      keep a pole up, and the cart at the teacher's own place: goals and skill
mountain_car.py  rock a car up a hill: skill
fetch.py         fetch what the teacher likes, by the shortest way: goals

The environments are those of Gymnasium and MiniGrid, as anyone makes them by their id: the package that has one is
imported when the first of them is made.
"""
