# One sweep of eight runs on four engines, of which Ray loses a machine in the middle. Run it with bash in an empty folder;
# it takes minutes, and leaves the results of each engine in a folder of its name. tests/test_engines.py runs this very file
# and compares them. Needs: pip install -c constraints.txt 'lmablate[ray,slurm]'
set -e
export RAY_USAGE_STATS_ENABLED=0
sweep=(-m norm=rms,layer activation=swiglu,gelu seed=0,1)
small=(tokenizer=bytes model.d_model=32 model.n_layers=2 model.context_length=32 trainer.batch_size=4 trainer.steps=600
       data.val_bytes=4000 runtime.evaluations=3 runtime.log_every=20 runtime.checkpoint_seconds=1 runtime.progress=lines
       runtime.compile=false trainer.precision=fp32)

python -m lmablate.train "${sweep[@]}" "${small[@]}" results_dir=local hydra/launcher=local
python -m lmablate.train "${sweep[@]}" "${small[@]}" results_dir=basic hydra/launcher=basic
python -m lmablate.train "${sweep[@]}" "${small[@]}" results_dir=submitit_local hydra/launcher=submitit_local

# A head without cores and two machines of one core, each of which ends with its `ray start`.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
trap 'kill $two $one $head 2> /dev/null || true; wait' EXIT
ray start --head --port=6379 --num-cpus=0 --include-dashboard=false --object-store-memory=80000000 --block & head=$!
until (: < /dev/tcp/127.0.0.1/6379) 2> /dev/null; do kill -0 $head; sleep 1; done
joined() { until ray status --address=127.0.0.1:6379 2> /dev/null | grep -q "/$1.0 CPU"; do kill -0 $2; sleep 1; done; }
ray start --address=127.0.0.1:6379 --num-cpus=1 --object-store-memory=80000000 --block & one=$!
joined 1 $one
ray start --address=127.0.0.1:6379 --num-cpus=1 --object-store-memory=80000000 --block & two=$!
joined 2 $two

python -m lmablate.train "${sweep[@]}" "${small[@]}" results_dir=ray hydra/launcher=ray hydra.launcher.address=127.0.0.1:6379 & sweeping=$!
until [ "$(grep -ls '"step": [1-9]' ray/*/status.json | wc -l)" -ge 2 ]; do kill -0 $sweeping; sleep 0.1; done
kill -9 $one
wait $sweeping
