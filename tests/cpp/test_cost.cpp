// The cost model on plans scored by hand.
#include <limits>

#include "check.hpp"
#include "orbitsplit/cost.hpp"
#include "small_problem.hpp"

using namespace orbitsplit;

namespace {

const std::vector<Stage> raw = {{0, 0, 2, 0}, {1, 2, 3, no_level}};

void check_prefill() {
    const Evaluation score = evaluate(small_problem(), raw);
    CHECK((score.stage_s == std::vector<double>{3, 3}));
    CHECK((score.link_s == std::vector<double>{3}));
    CHECK(score.objective_s == 3 + 3 + 3 + 0.5 + 2 * 3);
    CHECK((score.stage_memory_bytes == std::vector<double>{2, 1}));
    CHECK(score.is_feasible);
}

void check_codec_seconds() {
    const Evaluation score = evaluate(small_problem(), {{0, 0, 2, 1}, {1, 2, 3, no_level}});
    CHECK((score.stage_s == std::vector<double>{6, 4.5}));
    CHECK(score.objective_s == 6 + 1.5 + 4.5 + 0.5 + 2 * 6);
    CHECK(score.loss == 0.2);
}

// The stages of micro-batches before the last one have times of their own, which the maximum takes.
void check_earlier_times() {
    Problem problem = small_problem();
    CHECK(evaluate(problem, raw).earlier_stage_s.empty());
    problem.layer_earlier_time_s = {0.5, 3, 9, 9, 9, 2};
    const Evaluation score = evaluate(problem, raw);
    CHECK((score.stage_s == std::vector<double>{3, 3}));
    CHECK((score.earlier_stage_s == std::vector<double>{3.5, 2}));
    CHECK(score.objective_s == 3 + 3 + 3 + 0.5 + 2 * 3.5);
    CHECK(score.bottleneck_s == 3.5);
    problem.nodes[0].half_duplex = true;
    CHECK((evaluate(problem, raw).earlier_stage_s == std::vector<double>{6.5, 2}));
    CHECK(evaluate(problem, raw).objective_s == 3 + 3 + 3 + 0.5 + 2 * 6.5);
}

// The overhead of a stage counts once, whichever layers it has, for every micro-batch and token step.
void check_stage_overheads() {
    Problem problem = small_problem();
    problem.layer_earlier_time_s = {0.5, 3, 9, 9, 9, 2};
    problem.stage_overhead_s = {0.25, 4};
    const Evaluation score = evaluate(problem, raw);
    CHECK((score.stage_s == std::vector<double>{3.25, 7}));
    CHECK((score.earlier_stage_s == std::vector<double>{3.75, 6}));
    CHECK(score.objective_s == 3.25 + 3 + 7 + 0.5 + 2 * 6);
    CHECK(evaluate(problem, {{1, 0, 3, no_level}}).stage_s == std::vector<double>{2 + 1 + 3 + 4.0});
    problem.new_tokens = 3;
    problem.layer_decode_time_s = {0.5, 0.5, 1, 1, 1, 0.25};
    problem.cut_decode_bytes = {4, 4};
    problem.bandwidth_bytes_per_s[2] = 1;
    CHECK((evaluate(problem, raw).decode_stage_s == std::vector<double>{1, 0.25}));
    problem.stage_decode_overhead_s = {0.125, 0.5};
    CHECK((evaluate(problem, raw).decode_stage_s == std::vector<double>{1.125, 0.75}));
    CHECK(evaluate(problem, raw).round_trip_s == 1.125 + 1 + 0.75 + 0.5 + 0.25);
}

void check_generation() {
    Problem problem = small_problem();
    problem.new_tokens = 5;
    problem.groups = 7;
    problem.layer_decode_time_s = {0.5, 0.5, 1, 1, 1, 0.25};
    problem.cut_decode_bytes = {4, 4};
    const Evaluation one_way = evaluate(problem, raw);
    CHECK(one_way.violations.size() == 1);
    CHECK(one_way.objective_s == std::numeric_limits<double>::infinity());
    problem.bandwidth_bytes_per_s[2] = 1;
    const Evaluation score = evaluate(problem, raw);
    CHECK(score.round_trip_s == 1 + 1 + 0.25 + 0.5 + 0.25);
    CHECK(score.token_step_s == 7);
    CHECK(score.objective_s == score.prefill_s + 4 * 7);
    CHECK(score.tokens_per_step == 1);
    problem.tokens_per_step = 2;
    const Evaluation guessed = evaluate(problem, raw);
    CHECK(guessed.token_step_s == 7);
    CHECK(guessed.objective_s == score.prefill_s + 2 * 7);
    CHECK(value_s(guessed, Objective::time_per_token) == 3.5);
    CHECK(value_s(guessed, Objective::throughput) == 0.5);
    CHECK(value_s(guessed, Objective::time_to_first_token) == score.prefill_s);
}

void check_limits() {
    Problem problem = small_problem();
    problem.layer_memory_bytes = {2e9, 2e9, 1};
    problem.nodes[0].memory_bytes = 3.5e9;
    problem.nodes[0].headroom_bytes = 0.5e9;
    const Evaluation score = evaluate(problem, raw);
    CHECK(!score.is_feasible);
    CHECK(score.violations.at(0) == "stage 0 needs 4 GB, node \"left\" has 3 GB");
    CHECK_THROWS(evaluate(problem, {{0, 0, 2, no_level}}), std::invalid_argument,
                 "the plan stops at layer 2, the problem has 3");
    CHECK_THROWS(evaluate(problem, {{1, 0, 2, 0}, {0, 2, 3, no_level}}), std::invalid_argument,
                 "stage 1 is on node 0 after node 1, the order is fixed");
}

// Memory, times and losses are those of the stage's weight level.
void check_weight_levels() {
    Problem problem = small_problem();
    problem.weight_levels = {{"float32"}, {"int8"}};
    problem.layer_memory_bytes = {1, 1, 1, 0.25, 0.25, 0.25};
    problem.layer_time_s = {1, 2, 4, 2, 1, 3, 0.5, 1, 2, 1, 0.5, 1};
    problem.weight_loss = {0, 0, 0, 0.25, 0.5, std::numeric_limits<double>::infinity()};
    const Evaluation score = evaluate(problem, {{0, 0, 2, 0, 1}, {1, 2, 3, no_level, 0}});
    CHECK((score.stage_s == std::vector<double>{1.5, 3}));
    CHECK((score.stage_memory_bytes == std::vector<double>{0.5, 1}));
    CHECK(score.weight_loss == 0.75);
    CHECK(score.loss == 0.75);
    CHECK(evaluate(problem, {{0, 0, 3, no_level, 1}}).violations.at(0) ==
          "layer 2 (\"c\") does not have weight level \"int8\" of stage 0");
    CHECK_THROWS(evaluate(problem, raw), std::invalid_argument,
                 "stage 0 has no weight level, the problem has 2");
    CHECK_THROWS(evaluate(small_problem(), {{0, 0, 3, no_level, 0}}), std::invalid_argument,
                 "stage 0 has weight level 0, the problem has 0 weight levels");
}

// An infinite loss says that the cut does not have the level, whatever the budget.
void check_absent_level() {
    Problem problem = small_problem();
    problem.loss = {0, 0.1, 0, std::numeric_limits<double>::infinity()};
    for (const std::optional<double> budget : {std::optional<double>(), std::optional<double>(0.5)}) {
        problem.loss_budget = budget;
        const Evaluation score = evaluate(problem, {{0, 0, 2, 1}, {1, 2, 3, no_level}});
        CHECK(!score.is_feasible);
        CHECK(score.objective_s == 6 + 1.5 + 4.5 + 0.5 + 2 * 6);
        CHECK(score.violations.size() == 1);
        CHECK(score.violations.at(0) == "cut 1, after layer \"b\", does not have level \"half\"");
        CHECK(evaluate(problem, {{0, 0, 1, 1}, {1, 1, 3, no_level}}).is_feasible);
    }
}

}  // namespace

int main() {
    check_prefill();
    check_codec_seconds();
    check_earlier_times();
    check_stage_overheads();
    check_generation();
    check_limits();
    check_weight_levels();
    check_absent_level();
    return failures;
}
