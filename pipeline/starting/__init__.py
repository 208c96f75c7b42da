"""Before the first stage: what a machine can do, and a plan for somebody's data.

doctor checks the machine; look measures data, plan makes a recipe and commands of it. commands is where both start.
"""
