"""Small valid files of every kind that Perfuse reads, made afresh: text written here, the rest by Perfuse's writers."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

TIDY = (
    "drug,subject,event,time,time_unit,dose,dose_unit,route,duration,duration_unit,addl,ii,ii_unit,matrix,organ,conc,"
    "conc_unit,lloq,lloq_unit,topology,body_weight_kg,mw_g_mol,logp,fup,bp_ratio,clint_l_h,cl_renal_l_h,ka_1_h,"
    "vmax_mg_h_1,km_u_mg_l_1\n"
    "D,s1,dose,0,h,100,mg,iv_infusion,30,min,1,12,h,,,,,,,circulation,70,300,2,0.2,0.8,50,3,,5,1\n"
    "D,s1,observation,1,h,,,,,,,,,plasma,blood,4.0,mg/L,0.1,mg/L,,,,,,,,,,,\n"
    "D,s1,observation,120,min,,,,,,,,,plasma,,<0.5,umol/L,,,,,,,,,,,,,\n"
    "D,s2,dose,0,h,1,mg/kg,oral,,,,,,,,,,,,circulation,60,300,2,0.2,0.8,50,3,1.5,5,1\n"
    "D,s2,observation,2,h,,,,,,,,,tissue_homogenate,liver,1.5,ug/mL,,,,,,,,,,,,,\n"
)
TIDY_HUB = (
    "drug,subject,event,time,time_unit,dose,dose_unit,route,matrix,conc,conc_unit,topology,mw_g_mol,logp\n"
    "E,1,dose,0,h,10,mg,iv_bolus,,,,hub,200,1\n"
    "E,1,observation,1,h,,,,blood_venous,2,mg/L,,,\n"
)
NONMEM = (
    "ID,TIME,AMT,RATE,II,ADDL,SS,DV,EVID,MDV,CMT,BLQ,LLOQ,WT,FUP,BP_RATIO,MW_G_MOL,LOGP,KA_1_H,CLINT_L_H,CL_RENAL_L_H\n"
    "1,0,100,.,12,1,0,.,1,1,1,0,.,70,0.2,0.8,300,2,1.5,50,3\n"
    "1,1,.,.,.,.,.,2.5,0,0,2,0,0.1,70,0.2,0.8,300,2,1.5,50,3\n"
    "1,3,.,.,.,.,.,0.1,0,0,2,1,0.1,70,0.2,0.8,300,2,1.5,50,3\n"
    "2,0,50,25,.,.,.,.,1,1,2,0,.,80,0.2,0.8,300,2,1.5,50,3\n"
    "2,4,.,.,.,.,.,1,0,0,2,0,.,80,0.2,0.8,300,2,1.5,50,3\n"
)
NONMEM_OPTIONS = (
    'time_unit = "h"\ndose_unit = "mg/kg"\ndv_unit = "ng/mL"\ndefault_dose = "oral"\nmatrix = "plasma"\n'
    'topology = "circulation"\ncompound = "D"\nsteady_state_doses = 5\ncolumns = { CONC = "DV", BW = "WT" }\n'
    '[compartments]\n1 = "oral"\n2 = "blood"\n3 = "liver"\n'
)
HUMAN_COLUMNS = (
    "compound", "curve_id", "species", "route", "infusion_duration_h", "dose_mg_used", "body_weight_used_kg", "matrix",
    "time_h", "conc_mg_per_L", "httk_mw_g_per_mol", "httk_logp_octanol_water", "httk_pka_donor_acid_list",
    "httk_pka_acceptor_base_list", "httk_human_fup_fraction", "httk_human_clint_uL_per_min_per_million_hepatocytes",
    "httk_human_blood_to_plasma_ratio", "flag_unbound_conc", "n_dose_events",
)  # fmt: skip
HUMAN = (
    ",".join(HUMAN_COLUMNS) + "\n"
    "Drugone,c1,human,iv_bolus,,100,80,plasma,1,2,300,1.5,,9.1;4,0.3,5,0.9,False,1\n"
    "Drugone,c1,human,iv_bolus,,100,80,plasma,2,1,300,1.5,,9.1;4,0.3,5,0.9,False,1\n"
    "Drugtwo,c2,human,iv_infusion,0.5,10,70,serum,1,2,250,0.5,4.2,,0.5,0,,False,1\n"
)
DRUGS = (
    "name,mw_g_mol,logp,fup,pka_acid,pka_base,bp_ratio,clint_l_h,cl_renal_l_h,ka_1_h,vmax_mg_h,km_u_mg_l,kp_liver,"
    "dose_mg,dose_time_h,duration_h,route,body_weight_kg,matrix,curve_id\n"
    "A,300,2,0.2,,6.8;8.2,0.8,50,3,1.5,5,1,2.5,100,0,0.5,iv_infusion,70,plasma,c1\n"
    "A,300,2,0.2,,6.8;8.2,0.8,50,3,1.5,5,1,2.5,50,12,0,oral,70,plasma,c1\n"
    "B,200,1,0.5,4.2,,,10,,,,,,10,0,0,iv_bolus,60,serum,\n"
)
DRUG = (
    'name = "midazolam"\nmw_g_mol = 325.8\nlogp = 3.9\npka_base = [6.0, 2.1]\nfup = 0.03\nbp_ratio = 0.55\n'
    'clint_ul_min_million_cells = 28.0\ncl_renal_l_h = "3 mL/min/kg"\nka_1_h = "0.05 1/min"\nbody_weight_kg = 70\n'
    'matrix = "plasma"\nkp.adipose = 12.0\n[ps_l_h]\nbrain = 5.0\n[[saturable]]\nname = "CYP3A4"\nvmax_mg_h = 400.0\n'
    'km_um = 3.4\n[[dose]]\namount_mg = "2 mg/kg"\nroute = "oral"\n[[dose]]\namount_mg = 5\ntime_h = "30 min"\n'
    'duration_h = 1.5\nroute = "iv_infusion"\n'
)
CONFIG = (
    'seed = 3\n[model]\nname = "recurrent"\nhidden = 16\nheads = 2\nsteps = 3\nknots = 24\n[split]\nkind = "group"\n'
    'validation_fraction = 0.2\n[loss]\nkind = "log_huber"\norgan_weight = { blood = 2.0, liver = 3.0 }\n[optimizer]\n'
    'lr = 1e-3\nclip = 1.0\n[schedule]\nkind = "plateau"\npatience = 3\n[training]\nepochs = 2\nbatch_size = 8\n'
    'precision = "32"\nmax_minutes = 1.5\n'
)
SIMULATE = 'n = 20\ntask = "T2"\nseed = 1\nshard_size = 10\nworkers = 1\nmax_failed = 0.01\n'
_STUDY_DRUG = (
    '[drug]\nname = "midazolam"\nmw_g_mol = 325.8\nlogp = 3.9\npka_base = 6.0\nfup = 0.03\n'
    "clint_ul_min_million_cells = 28.0\n"
    "ka_1_h = 2.0\n"
)
STUDIES = (
    _STUDY_DRUG + '[subject]\nage_year = 35\nsex = "female"\nbody_weight_kg = "62 kg"\ncondition = "hepatic:A"\n'
    'enzymes = { CYP3A4 = 0.9 }\n[structure]\ntopology = "circulation"\npermeability_limited = []\n[[organ]]\n'
    'name = "tumour"\nvolume_l = 0.05\nflow_l_h = 1.2\nkp = 1.5\n[[dose]]\namount_mg = "2 mg/kg"\nroute = "oral"\n'
    'time_h = 0\ninterval_h = "12 h"\nn_doses = 3\n[output]\ntimes_h = "0..36 h by 6 h"\norgans = ["blood", "brain"]\n'
    'matrix = "plasma"\nkp_method = "rodgers-rowland"\n',
    _STUDY_DRUG + "[population]\nn = 2\nseed = 1\nage_range_year = [20, 50]\nshare_female = 0.5\nweight_cv = 0.1\n"
    "volume_cv = { liver = 0.2 }\ndrug_cv = { clint = 0.5 }\n[[dose]]\namount_mg = 5\ntime_h = [0, 12]\n[output]\n"
    "times_h = { stop = 8, step = 4 }\npercentiles = [5, 50, 95]\n",
    _STUDY_DRUG
    + '[subject]\nspecies = "rat"\n[[dose]]\namount_mg = 1\nduration_h = 0.5\n[output]\ntimes_h = [0, 1, 2]\n'
    "steady_state_tau_h = 12\n",
    '[drug]\nfile = "drug.toml"\n[structure]\nfile = "graph.toml"\n[[dose]]\namount_mg = 1\n[output]\n'
    'times_h = [0, 1]\nmatrix = "blood_venous"\n',
)
STUDY_DRUG_FILE = 'name = "x"\nmw_g_mol = 300\nlogp = 1\nfup = 0.5\n'
GRAPH = (
    'name = "small"\ndose = "venous"\nabsorption = "liver"\nkp_is_blood = false\n[[node]]\nname = "venous"\n'
    "volume_l = 5\n"
    'blood = true\n[[node]]\nname = "liver"\nvolume_l = 1.8\nkp = 2.0\n[[node]]\nname = "cap"\nvolume_l = 0.1\n'
    "[[flow]]\n"
    'from = "venous"\nto = "liver"\nflow_l_h = 90\n[[flow]]\nfrom = "liver"\nto = "venous"\nflow_l_h = 90\n'
    '[[elimination]]\nname = "cl"\nkind = "intrinsic"\norgan = "liver"\nclearance_l_h = 10\n'
)
EXTENSION = (
    'extends = "circulation"\npermeability_limited = ["muscle"]\n[[organ]]\nname = "tumour"\nvolume_l = 0.05\n'
    "flow_l_h = 1.2\n"
    'ps_l_h = 0.4\nvascular_fraction = 0.1\ntake_from = "other"\nclint_l_h = 2\n'
)
STUDY_OF_GRAPH = (
    '[drug]\nname = "x"\nmw_g_mol = 300\nlogp = 1\nfup = 0.5\nka_1_h = 1.0\n[structure]\nfile = "graph.toml"\n'
    "[[dose]]\n"
    'amount_mg = 1\n[output]\ntimes_h = [0, 1]\nmatrix = "blood_venous"\n'
)
STUDY_OF_EXTENSION = (
    _STUDY_DRUG
    + 'ps_l_h.muscle = 2\n[structure]\nfile = "graph.toml"\n[[dose]]\namount_mg = 1\n[output]\ntimes_h = [0, 1]\n'
)
PREDICTED = (
    "curve_id,drug,organ,matrix,time_h,conc_mg_l,lower_90\n"
    "c1,A,blood,plasma,0,0,\nc1,A,blood,plasma,1,5.0,4\nc1,A,blood,plasma,2,2.5,2\nc1,A,blood,plasma,4,0.6,\n"
    "c1,A,blood,plasma,8,0.04,\nc1,A,liver,tissue_homogenate,1,7.5,\n"
)
METRICS = (
    '{"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.4, "lr": 0.001, "time_s": 1.5}\n'
    '{"epoch": 2, "step": 20, "train_loss": 0.3, "val_loss": null, "lr": 0.001, "time_s": 3.0}\n'
)
SPACE = "[optimizer]\nlr = { low = 1e-3, high = 3e-2, log = true }\n[model]\nhidden = { choices = [64, 128, 256] }\n"
SWEEP = (
    '{"schema_version": 1, "seed": 0, "config": {"model": {"name": "flux"}}, "space": {"optimizer": {"lr": '
    '{"low": 0.001, "high": 0.03, "log": true}}, "model": {"hidden": {"choices": [64, 128]}}}, '
    '"early_termination": true, '
    '"data": "x", "data_sha256": "'
    + "0" * 64
    + '", "n_train": 10, "n_validation": 2, "n_test": 2, "code_version": "0"}'
)
TRIALS = (
    '{"event": "started", "number": 0, "values": {"optimizer.lr": 0.01, "model.hidden": 64}}\n'
    '{"event": "rung", "number": 0, "rung": 0, "val_loss": 0.5, "goes_on": true}\n'
    '{"event": "ended", "number": 0, "status": "completed", "val_loss": 0.4, "progress": 1.0, "best_epoch": 2, '
    '"epochs": 3, "steps": 30, "seconds": 1.5, "reason": ""}\n'
)
NOTE = (
    '{"failures": [{"curve_id": "a", "reason": "x"}], "shard": {"file": "shard-00000.arrow", "rows": 2, "bytes": 10, '
    '"sha256": "' + "0" * 64 + '"}}'
)


def origin(compress: bool = False) -> bytes:
    """Two curves at three times in the origin's layout."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(
        buffer, doses=np.asarray([10.0, 20.0]), clearances_hepatic=np.asarray([5.0, 6.0]),
        clearances_renal=np.asarray([1.0, 2.0]), partition_coeffs=1 + rng.random((2, 14)),
        concentrations=rng.random((2, 14, 3)), time_points=np.asarray([0.0, 1.0, 2.0]), compound_ids=np.asarray(["a",
        "b"]),
    )  # fmt: skip
    return buffer.getvalue()


def parquet(table: str) -> bytes:
    """A CSV's content as Parquet, numbers as numbers."""
    import polars as pl

    buffer = io.BytesIO()
    pl.read_csv(io.StringIO(table)).write_parquet(buffer)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def run_files() -> dict[str, bytes]:
    """Every file of a run of one epoch on six curves, by path inside the run."""
    import tempfile

    from perfuse.config import parse_config
    from perfuse.data.simulate import simulate_task
    from perfuse.training.run import train

    full = simulate_task("T1", 8, seed=0)
    at = np.asarray([0, 5, 20])
    table = replace(
        full, time_h=full.time_h[:, at], conc_mg_l=full.conc_mg_l[:, :, at], censored=full.censored[:, :, at]
    )
    config = parse_config({
        "model": {"name": "loglinear-rates", "start": "zero"},
        "training": {"epochs": 1, "batch_size": 4, "tensorboard": False, "device": "cpu"},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        train(table, config, run)
        found = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    return found


def run_folder(folder: Path) -> Path:
    """A run's folder with the files of ``run_files``."""
    for name, content in run_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def dataset(folder: Path) -> Path:
    """A dataset of two shards of one curve each."""
    from perfuse.data.importers.origin import read_origin_npz
    from perfuse.data.store import write_dataset

    source = folder.with_name("source.npz")
    source.write_bytes(origin())
    table = read_origin_npz(source)
    generator: dict[str, object] = {"task": "T1"}
    return write_dataset([table.take(np.asarray([i])) for i in (0, 1)], folder, generator=generator, seed=0)


def calibrated(checkpoint: Path) -> None:
    """Write a calibration of made-up numbers beside a checkpoint."""
    from perfuse.pk.physiology import ORGANS
    from perfuse.pk.topology import get_topology
    from perfuse.training.calibration import Calibration
    from perfuse.training.calibration_file import CalibrationRecord, save_calibration
    from perfuse.training.checkpoint import MODEL_FILE, load_checkpoint
    from perfuse.training.conformal import LEVELS
    from perfuse.training.distance_file import load_distance, training_key
    from perfuse.training.residual_scale import LEVEL_KNOTS_LN, TIME_KNOTS_LN_H, ResidualScale

    read = load_checkpoint(checkpoint)
    state, topology = read.state, get_topology(read.state.topology)
    distance = load_distance(checkpoint.parent, training_key(state), topology)
    assert distance is not None
    terms, organs = 2 * (len(distance.names) + 1) - 1, len(ORGANS)
    scale = ResidualScale(
        np.zeros((organs, len(TIME_KNOTS_LN_H))), np.zeros(len(LEVEL_KNOTS_LN)), np.zeros(terms), np.ones(terms),
        np.zeros(terms),
    )  # fmt: skip
    quantiles = np.repeat(np.asarray([[0.5], [1.0], [1.5], [2.0]]), organs, axis=1)
    calibration = Calibration(
        distance, scale, LEVELS, quantiles, np.full(organs, 200, dtype=np.int64), 200, 100, 200, 2000, np.full(4, 0.01)
    )
    record = CalibrationRecord(
        code_version="0", model_sha256=state.files[MODEL_FILE], topology=state.topology, levels=list(LEVELS),
        features=list(distance.names), with_descriptors=distance.with_descriptors, neighbours=distance.neighbours,
        n_drugs=200, n_scale_drugs=100, n_curves=200, n_values=2000, seed=0, data_path="x", data_sha256="0" * 64,
        compound_ids=["a"], group_ids=["g"],
    )  # fmt: skip
    save_calibration(checkpoint, calibration, record)


def evaluated(folder: Path) -> Path:
    """A stored evaluation of the run on curves that it has not seen."""
    from perfuse.evaluation.evaluate import evaluate_run

    data = dataset(folder / "unseen")
    run = run_folder(folder / "run")
    evaluate_run(run, data, folder / "evaluation", baselines=False)
    return folder / "evaluation"
