"""English words that are not specific to the subject of a text."""

_WORDS = """
a about above after again against all almost also although always am among an and another any are as at be because
been before being below between both but by can cannot could did do does doing done down due during each either else
enough ever every few for from further had has have having he hence her here hers herself him himself his how
however i if in into is it its itself just least less let like made make many may me might mine more most much must
my myself neither never no nor not now of off often on once one only onto or other others our ours ourselves out
over own per perhaps quite rather really same seem seems shall she should since so some such than that the their
theirs them themselves then there therefore these they this those though through thus to together too toward towards
under until up upon us use used using very via was we well were what when where whether which while who whom whose
why will with within without would yet you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_WORDS.split())
