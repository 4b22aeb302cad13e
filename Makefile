# make demo       install the CPU build, train on the sample, evaluate, show recommendations
# make test       install what the tests need and run the fast ones
# make test-paddle those of them that ask what Paddle computes, for another version of it
# make test-slow  the slow ones: they start clusters, kill processes and run the docs
# make test-all   all of them
# make lint       check the code with ruff
# make docs       write what the docs take from the code: flags, modules
# make clean      remove what these made

PYTHON ?= python3
VENV ?= .venv
PADDLE ?=  # another version, say paddlepaddle==3.3.1

.PHONY: demo test test-paddle test-slow test-all lint docs clean

demo: $(VENV)/installed
	$(VENV)/bin/python train.py --train_dir train_data --use_cuda 0 --batch_size 50 \
	    --model_dir model_output
	$(VENV)/bin/python infer.py --test_dir test_data --use_cuda 0 --batch_size 50 \
	    --model_dir model_output --start_index 10 --topk 5 20 --output recommendations.tsv
	@echo; echo "The 5 articles that fit best to the clicks of the first three readers:"; echo
	@awk -F'\t' '$$4 <= 5 && $$2 <= 3 || NR == 1 {print $$2 "\t" $$4 "\t" $$5 "\t" $$7 "\t" $$8}' \
	    recommendations.tsv

test: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest -q

PADDLE_TESTS = api checkpoints commands content encoder evaluation export impressions item_vectors nets \
    parallel reader retrieve train

test-paddle: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest -q $(PADDLE_TESTS:%=tests/test_%.py)

test-slow: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest -q -m slow

test-all: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest -q -m ""

lint: $(VENV)/installed-tests
	$(VENV)/bin/python -m ruff check .

docs: $(VENV)/installed-tests
	$(VENV)/bin/python docs/tables.py

$(VENV)/installed: requirements-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -r requirements-cpu.txt
	test -z "$(PADDLE)" || $(VENV)/bin/python -m pip install -q "$(PADDLE)"
	touch $@

$(VENV)/installed-tests: $(VENV)/installed tests/requirements.txt
	$(VENV)/bin/python -m pip install -q -r tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) model_output cluster_model cluster_logs log index exported recommendations.tsv \
	    metrics.png vectors.parquet
