"""Methods that train on labelled sources and unlabelled targets."""

from dafw.methods.adaptation.adabn import AdaBN
from dafw.methods.adaptation.adda import ADDA
from dafw.methods.adaptation.afn import AFN
from dafw.methods.adaptation.bnm import BNM
from dafw.methods.adaptation.cdan import CDAN
from dafw.methods.adaptation.dan import DAN
from dafw.methods.adaptation.dann import DANN
from dafw.methods.adaptation.dcan import DCAN
from dafw.methods.adaptation.dcc import DCC
from dafw.methods.adaptation.deep_coral import DeepCORAL
from dafw.methods.adaptation.fixmatch import FixMatch
from dafw.methods.adaptation.gdcan import GDCAN
from dafw.methods.adaptation.jan import JAN
from dafw.methods.adaptation.mcc import MCC
from dafw.methods.adaptation.mcd import MCD
from dafw.methods.adaptation.mdd import MDD
from dafw.methods.adaptation.memspm import MemSPM
from dafw.methods.adaptation.osbp import OSBP
from dafw.methods.adaptation.ovanet import OVANet
from dafw.methods.adaptation.pada import PADA
from dafw.methods.adaptation.pareto_da import ParetoCDAN, ParetoDA, ParetoMDD
from dafw.methods.adaptation.sdat import SDAT
from dafw.methods.adaptation.shallow import Shallow
from dafw.methods.adaptation.source_only import SourceOnly
from dafw.methods.adaptation.uan import UAN
from dafw.methods.adaptation.uniot import UniOT

__all__ = [
    "ADDA",
    "AFN",
    "BNM",
    "CDAN",
    "DAN",
    "DANN",
    "DCAN",
    "DCC",
    "GDCAN",
    "JAN",
    "MCC",
    "MCD",
    "MDD",
    "OSBP",
    "PADA",
    "SDAT",
    "UAN",
    "AdaBN",
    "DeepCORAL",
    "FixMatch",
    "MemSPM",
    "OVANet",
    "ParetoCDAN",
    "ParetoDA",
    "ParetoMDD",
    "Shallow",
    "SourceOnly",
    "UniOT",
]
