"""The nine electrodes of a 12-lead ECG and what each lead makes of their potentials.

  I = LA - RA    aVR = RA - (LA + LL) / 2    V1 = E1 - (RA + LA + LL) / 3    …

Whatever is added at the electrodes keeps the laws of Einthoven and Goldberger in the leads.
"""

import numpy as np

NAMES = ("RA", "LA", "LL", "E1", "E2", "E3", "E4", "E5", "E6")

_LIMB_LEADS = [[-1, 1, 0], [-1, 0, 1], [0, -1, 1], [1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]
_WILSON = [[-1 / 3, -1 / 3, -1 / 3]] * 6
# weights of the electrodes in each lead, [12, 9]
ELECTRODES = np.block([[np.array(_LIMB_LEADS), np.zeros((6, 6))], [np.array(_WILSON), np.eye(6)]])
