#!/usr/bin/env bash
# The whole story on the job-talent world: contrastive training, mining, a second round, preferences of a judge, RankPO,
# evaluation of all models, one report. A run that is finished is not run again; an interrupted one is continued.
#
#   scripts/two_stage.sh                                  # runs/story/report.html  
#   MODEL=tiny_bert POSTS=20 PROFILES=200 scripts/two_stage.sh trainer.batch_size=8     # overrides go to every training
#
# For your own data, put datasets=[rankpo] datasets.rankpo.path=FILE where datasets=[jobs] stands, and judge=openai
# judge.base_url=URL judge.model=NAME where judge=rules stands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-minilm}
MINING=${MINING:-positive_aware}
POSTS=${POSTS:-300}
PROFILES=${PROFILES:-1500}
TEST_POSTS=${TEST_POSTS:-80}
TEST_PROFILES=${TEST_PROFILES:-1000}
CACHE=${CACHE:-runs/story}
PYTHON=${PYTHON:-.venv/bin/python}

sized() { printf '%s\n' "$1.num_profiles=$PROFILES" "$1.num_posts=$POSTS"; }
launch() { "$PYTHON" launch.py "cache_dir=$CACHE" "$@"; }
train() { launch "model=$MODEL" resume=auto trainer.save_every=epoch "$@"; }

mapfile -t jobs < <(sized datasets.jobs)
mapfile -t judge < <(sized judge)

# 1 · contrastive learning on what the rules say
train experiment=jobs_stage1 exp_name=one "${jobs[@]}" "$@"

# 2 · hard negatives, by the model itself, and a second round on them
[ -f "$CACHE/mined/mined.jsonl" ] || launch task=mine "mining=$MINING" "model=$MODEL" "model.load_from=$CACHE/one/FINAL" \
  'datasets=[jobs]' "${jobs[@]}" mining.corpus=own exp_name=mined
train experiment=jobs_stage1 exp_name=two "model.load_from=$CACHE/one/FINAL" \
  'datasets=[rankpo]' "datasets.rankpo.path=$CACHE/mined/mined.jsonl" optimizer.lr=2e-5 "$@"

# 3 · a judge compares passages of the model's own ranking, in both orders
launch task=annotate judge=rules "${judge[@]}" "model=$MODEL" "model.load_from=$CACHE/two/FINAL" 'datasets=[jobs]' "${jobs[@]}" \
  task.corpus=own task.queries=own task.pairs.top_k=20 task.pairs.per_query=15 exp_name=judged

# 4 · RankPO: alone, and with stage one replayed beside it
preferences=('datasets=[rankpo]' "datasets.rankpo.path=$CACHE/judged/annotate/preferences.jsonl")
train experiment=jobs_stage2 exp_name=plain "model.load_from=$CACHE/two/FINAL" "${preferences[@]}" \
  'replay_datasets=[]' loss.replay_weight=0 "$@"
train experiment=jobs_stage2 exp_name=aligned "model.load_from=$CACHE/two/FINAL" "${preferences[@]}" \
  'replay_datasets=[rankpo]' "replay_datasets.rankpo.path=$CACHE/mined/mined.jsonl" "$@"

# 5 · what each stage changed: relevance by the rules, agreement with the judge, what is kept of the stage before
declare -A start=([two]=one [plain]=two [aligned]=two)
for run in one two plain aligned; do
  launch task=evaluate "model=$MODEL" "model.load_from=$CACHE/$run/FINAL" "exp_name=$run" \
    'eval_datasets=[jobs_test,jobs_preferences_test]' ${start[$run]:+"task.start=$CACHE/${start[$run]}/FINAL"} \
    "eval_datasets.jobs_test.num_profiles=$TEST_PROFILES" "eval_datasets.jobs_test.num_posts=$TEST_POSTS" \
    "eval_datasets.jobs_preferences_test.num_profiles=$TEST_PROFILES" "eval_datasets.jobs_preferences_test.num_posts=$TEST_POSTS"
done
launch task=report "task.runs=[$CACHE/one,$CACHE/mined,$CACHE/two,$CACHE/judged,$CACHE/plain,$CACHE/aligned]" 'task.metrics=[ndcg@20,recall@100,accuracy]' \
  task.baseline=two 'task.title=Two stages of RankPO' 'eval_datasets=[jobs_test]' \
  "eval_datasets.jobs_test.num_profiles=$TEST_PROFILES" "eval_datasets.jobs_test.num_posts=$TEST_POSTS" "task.output=$CACHE/report.html"
