"""Parsing of a job request."""

import json

import pytest

from model_core.errors import InvalidConfig, InvalidParameter, UnknownPreset
from worker.jobs.spec import options_of, parse_spec, processes_of


def pointers(error):
    return [problem.pointer for problem in error.value.problems]


def test_kind_and_run_come_from_the_experiment():
    spec = parse_spec({"experiment_name": "mine", "execution": {"train": False, "test": True}})
    assert (spec.kind, spec.run) == ("test", "mine")


def test_run_is_renamed_without_changing_the_tree():
    tree = {"experiment_name": "mine"}
    assert parse_spec(tree, run="other").config.experiment_name == "other"
    assert tree == {"experiment_name": "mine"}


def test_run_that_could_leave_its_directory_is_refused():
    with pytest.raises(InvalidParameter, match=r"'\.\./x'"):
        parse_spec({}, run="../x")


def test_rest_of_the_tree_patches_the_preset():
    spec = parse_spec({"experiment_name": "mine", "training": {"max_steps": 900}, "job": {"preset": "baseline"}})
    assert (spec.run, spec.config.training.max_steps) == ("mine", 900)
    assert spec.config.model == parse_spec({"job": {"preset": "baseline"}}).config.model


def test_unknown_preset_names_the_known():
    with pytest.raises(UnknownPreset, match="baseline"):
        parse_spec({"job": {"preset": "basline"}})


def test_all_problems_come_in_one_answer():
    tree = {"model": {"n_hed": 3}, "job": {"priorty": 1, "resources": {"gpus": -1}}}
    with pytest.raises(InvalidConfig) as refused:
        parse_spec(tree)
    assert pointers(refused) == ["/job/resources/gpus", "/job/priorty", "/model/n_hed"]
    assert refused.value.problems[1].nearest == ("priority",)


@pytest.mark.parametrize("wanted", ["step=5", "model_00005.pt"])
def test_an_export_is_a_run_and_the_file_of_its_checkpoint(wanted):
    spec = parse_spec({"job": {"kind": "export"}, "testing": {"checkpoint_path": wanted}}, run="mine")
    assert (spec.kind, spec.run, spec.gpus, spec.export) == ("export", "mine", 0, "mine/model_00005.pt")
    assert spec.config.model_fields_set == {"experiment_name", "testing"}


def test_an_ablation_keeps_its_options_and_the_device():
    options = {"checkpoint": "step=5", "baseline": "zero"}
    spec = parse_spec({"job": {"kind": "ablate", "options": options}, "device": {"device": "cpu"}}, run="mine")
    assert (spec.run, spec.gpus, spec.ablation) == ("mine", 0, "mine/model_00005.pt")
    assert spec.config.model_fields_set == {"experiment_name", "device"}
    [(name, text)] = options_of(spec.kind, spec.record).items()
    assert (name, json.loads(text)) == ("options", {**options, "tokens": 16_384, "split": "test", "draws": 4})
    assert parse_spec({"job": {"kind": "ablate"}}).ablation.endswith("/model_best.pt")


def test_an_export_that_asks_for_a_gpu_is_refused():
    with pytest.raises(InvalidConfig) as refused:
        parse_spec({"job": {"kind": "export", "resources": {"gpus": 1}}})
    assert pointers(refused) == ["/job/resources/gpus"]


def test_kind_that_contradicts_the_experiment_is_refused():
    with pytest.raises(InvalidConfig, match="'train'") as refused:
        parse_spec({"job": {"kind": "test"}})
    assert pointers(refused) == ["/job/kind"]


def test_paths_of_another_machine_are_replaced():
    spec = parse_spec({"data": {"data_dir": "/srv/mine"}, "output": {"exp_dir": "D:\\exp"}})
    assert "/srv/mine" not in spec.config.model_dump_json()
    assert [warning.code for warning in spec.warnings] == ["paths_replaced"]
    assert all(key in spec.warnings[0].detail for key in ("data.data_dir", "output.exp_dir"))


@pytest.mark.parametrize("source", ["file:/etc/passwd", "file:uploads/../secret.txt", "file:../x"])
def test_source_outside_of_uploads_is_refused(tmp_path, source):
    with pytest.raises(InvalidConfig) as refused:
        parse_spec({"data": {"source": source}}, data_root=tmp_path)
    assert pointers(refused) == ["/data/source"]


def test_uploaded_source_is_taken(tmp_path):
    assert parse_spec({"data": {"source": "file:uploads/a.txt"}}, data_root=tmp_path).run == "baseline"


@pytest.mark.parametrize(("device", "gpus"), [("auto", None), ("cpu", 0), ("cuda", 1)])
def test_device_decides_which_worker_fits(device, gpus):
    assert parse_spec({"device": {"device": device}}).gpus == gpus


@pytest.mark.parametrize("job", [[1], "x", {"preset": 3}, {"metadata": {"a": 1}}])
def test_section_of_the_wrong_shape_is_refused(job):
    with pytest.raises(InvalidConfig) as refused:
        parse_spec({"job": job})
    assert pointers(refused)[0].startswith("/job")


@pytest.mark.parametrize(
    ("resources", "device", "gpus", "processes"),
    [
        ({"processes": 2}, "auto", 0, 2),
        ({"processes": 2}, "cuda", 2, 2),
        ({"processes": 2, "gpus": 0}, "auto", 0, 2),
        ({"gpus": 4}, "auto", 4, 4),
        ({"gpus": 2, "processes": 2}, "auto", 2, 2),
        ({"gpus": 1}, "auto", 1, 1),
        ({}, "auto", None, 1),
    ],
)
def test_several_gpus_are_driven_by_as_many_processes(resources, device, gpus, processes):
    spec = parse_spec({"job": {"resources": resources}, "device": {"device": device}})
    assert (spec.gpus, spec.processes, processes_of(spec.record)) == (gpus, processes, processes)


def test_processes_that_leave_gpus_unused_are_reported():
    spec = parse_spec({"job": {"resources": {"processes": 2}}})
    assert [warning.code for warning in spec.warnings] == ["processes_on_cpu"]


def test_gpus_that_a_test_leaves_idle_are_reported():
    tree = {"execution": {"train": False, "test": True}, "job": {"resources": {"gpus": 2}}}
    spec = parse_spec(tree)
    assert (spec.processes, [warning.code for warning in spec.warnings]) == (1, ["gpus_idle"])


@pytest.mark.parametrize(
    ("tree", "pointer", "nearest"),
    [
        ({"job": {"resources": {"gpus": 3, "processes": 2}}}, "/job/resources/processes", (3,)),
        ({"job": {"resources": {"processes": 0}}}, "/job/resources/processes", ()),
        (
            {"execution": {"train": False, "test": True}, "job": {"resources": {"processes": 2}}},
            "/job/resources/processes",
            (1,),
        ),
        (
            {"training": {"total_batch_size": 524_288}, "job": {"resources": {"processes": 3}}},
            "/training/total_batch_size",
            (491_520, 540_672),
        ),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused_with_what_could(tree, pointer, nearest):
    with pytest.raises(InvalidConfig) as refused:
        parse_spec(tree)
    assert [(problem.pointer, problem.nearest) for problem in refused.value.problems] == [(pointer, nearest)]
