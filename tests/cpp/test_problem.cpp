// Problems: what validate() rejects, and the messages. tests/python/planner/test_problem.py has the long table.
#include <cmath>
#include <limits>

#include "check.hpp"
#include "orbitsplit/problem.hpp"
#include "small_problem.hpp"

using namespace orbitsplit;

namespace {

template <class Change>
Problem changed(Change change) {
    Problem problem = small_problem();
    change(problem);
    return problem;
}

void check_refusals() {
    CHECK_THROWS(validate(Problem{}), std::invalid_argument, "layers is empty, needs at least one layer");
    CHECK_THROWS(validate(changed([](Problem& p) { p.layer_time_s[4] = -0.5; })), std::invalid_argument,
                 "layer_time_s[1][1] is -0.5, must be at least 0");
    CHECK_THROWS(validate(changed([](Problem& p) { p.layer_earlier_time_s = {0, 1, 2, 3, 4, 1.5e100}; })),
                 std::invalid_argument, "layer_earlier_time_s[1][2] is 1.5e+100, must be at most 1e+100");
    CHECK_THROWS(validate(changed([](Problem& p) { p.stage_overhead_s = {0, -1}; })), std::invalid_argument,
                 "stage_overhead_s[1] is -1, must be at least 0");
    CHECK_THROWS(validate(changed([](Problem& p) { p.cut_bytes[1] = std::nan(""); })), std::invalid_argument,
                 "cut_bytes[1] is nan, must be finite");
    CHECK_THROWS(validate(changed([](Problem& p) { p.levels[1].ratio = 0.5; })), std::invalid_argument,
                 "levels[1].ratio is 0.5, must be at least 1");
    CHECK_THROWS(validate(changed([](Problem& p) { p.new_tokens = 2; })), std::invalid_argument,
                 "layer_decode_time_s is missing, new_tokens is 2");
    CHECK_THROWS(validate(changed([](Problem& p) { p.pins.layers = {{0, 0}, {0, 1}}; })),
                 std::invalid_argument, "pins.layers[0] is given twice");
}

// The Python package checks shapes before it calls the core; for C++ callers the core must.
void check_sizes() {
    CHECK_THROWS(validate(changed([](Problem& p) { p.weight_loss = {0}; })), std::invalid_argument,
                 "weight_loss has 1 values, needs 0");
    CHECK_THROWS(validate(changed([](Problem& p) { p.weight_levels = {{"float32"}, {"int8"}}; })),
                 std::invalid_argument, "layer_memory_bytes has 3 values, needs 6");
    CHECK_THROWS(validate(changed([](Problem& p) { p.layer_time_s.pop_back(); })), std::invalid_argument,
                 "layer_time_s has 5 values, needs 6");
    CHECK_THROWS(validate(changed([](Problem& p) { p.layer_earlier_time_s = {1}; })), std::invalid_argument,
                 "layer_earlier_time_s has 1 values, needs 6");
    CHECK_THROWS(validate(changed([](Problem& p) { p.stage_decode_overhead_s = {1, 2, 3}; })),
                 std::invalid_argument, "stage_decode_overhead_s has 3 values, needs 2");
    CHECK_THROWS(validate(changed([](Problem& p) { p.loss.clear(); })), std::invalid_argument,
                 "loss has 0 values, needs 4");
    CHECK_THROWS(validate(changed([](Problem& p) { p.ingress = ExternalLink{1, {1}, {0, 0}}; })),
                 std::invalid_argument, "ingress.bandwidth_bytes_per_s has 1 values, needs 2");
}

void check_losses() {
    const double infinity = std::numeric_limits<double>::infinity();
    validate(changed([&](Problem& p) { p.loss = {0, infinity, 1e100, infinity}; }));
    CHECK_THROWS(validate(changed([](Problem& p) { p.loss[2] = 1.5e100; })), std::invalid_argument,
                 "loss[1][0] is 1.5e+100, must be at most 1e+100");
    CHECK_THROWS(validate(changed([](Problem& p) { p.loss[3] = std::nan(""); })), std::invalid_argument,
                 "loss[1][1] is nan, must be finite");
    CHECK_THROWS(validate(changed([&](Problem& p) { p.loss[1] = -infinity; })), std::invalid_argument,
                 "loss[0][1] is -inf, must be finite");
    validate(changed([](Problem& p) { p.loss_budget = 2e100; }));
    CHECK_THROWS(validate(changed([&](Problem& p) { p.loss_budget = infinity; })), std::invalid_argument,
                 "loss_budget is inf, must be finite");
}

}  // namespace

int main() {
    validate(small_problem());
    check_losses();
    check_refusals();
    check_sizes();
    return failures;
}
