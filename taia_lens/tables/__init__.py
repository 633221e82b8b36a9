"""Tables and records: a result's summary in, text out, for terminals and for `--json`. Imports no torch."""

from taia_lens.tables.adapters import adapters_note, adapters_records, adapters_tables
from taia_lens.tables.anatomy import anatomy_records, anatomy_tables
from taia_lens.tables.attribution import attribution_note, attribution_tables, check_records
from taia_lens.tables.drift import drift_note, drift_records, drift_tables
from taia_lens.tables.grid import effect_records, grid_records, grid_tables
from taia_lens.tables.heads import heads_note, heads_records, heads_report, heads_tables
from taia_lens.tables.layers import cumulated_tables, layers_note, layers_records, layers_report, layers_tables, shift_tables
from taia_lens.tables.lens import lens_records, lens_table
from taia_lens.tables.lofit_paper import lofit_paper_note, lofit_paper_records, lofit_paper_tables
from taia_lens.tables.patching import FEW, cells, noise_line, patch_tables, records
from taia_lens.tables.steering import steering_note, steering_records, steering_tables
from taia_lens.tables.transfer import transfer_records, transfer_tables

__all__ = [
    "FEW",
    "adapters_note",
    "adapters_records",
    "adapters_tables",
    "anatomy_records",
    "anatomy_tables",
    "attribution_note",
    "attribution_tables",
    "cells",
    "check_records",
    "cumulated_tables",
    "drift_note",
    "drift_records",
    "drift_tables",
    "effect_records",
    "grid_records",
    "grid_tables",
    "heads_note",
    "heads_records",
    "heads_report",
    "heads_tables",
    "layers_note",
    "layers_records",
    "layers_report",
    "layers_tables",
    "lens_records",
    "lens_table",
    "lofit_paper_note",
    "lofit_paper_records",
    "lofit_paper_tables",
    "noise_line",
    "patch_tables",
    "records",
    "shift_tables",
    "steering_note",
    "steering_records",
    "steering_tables",
    "transfer_records",
    "transfer_tables",
]
