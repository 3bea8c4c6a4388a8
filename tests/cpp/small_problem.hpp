// Three layers on two nodes, one lossless level and one that halves the bytes: simple enough to score by hand.
#pragma once

#include "orbitsplit/problem.hpp"

inline orbitsplit::Problem small_problem() {
    orbitsplit::Problem problem;
    problem.layers = {"a", "b", "c"};
    problem.nodes = {{"left", 3}, {"right", 3}};
    problem.layer_memory_bytes = {1, 1, 1};
    problem.layer_time_s = {1, 2, 4, 2, 1, 3};
    problem.cut_bytes = {8, 12};
    problem.bandwidth_bytes_per_s = {0, 4, 0, 0};
    problem.latency_s = {0, 0.5, 0.25, 0};
    problem.levels = {{"raw", 1, 0, 0}, {"half", 2, 0.25, 0.125}};
    problem.loss = {0, 0.1, 0, 0.2};
    problem.micro_batches = 3;
    return problem;
}
