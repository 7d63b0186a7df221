"""The command line: arguments in, tables or JSON out. Each command imports what is heavy by itself.

May import everything. Begin with `app`, which has the commands; `outcome` says how one ends.
"""
