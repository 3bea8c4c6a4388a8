// What the planner derives from a problem and an objective once: flat arrays that its inner loops read.
//
// Boundaries are numbered 0..layers: boundary i lies before layer i, so that cut i - 1 crosses boundary i.
//
// Relaxations and labels move along a graph whose vertices are nodes, each together with the last nodes that a chain
// visited before it. Initially there is one vertex for each node; k_cycle.hpp extends what vertices remember.
//
// A lane is a node at a weight level: what a stage's layers take depends on both. Without weight levels lanes are nodes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "planner/options.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit::planner {

// A linear form under which prefill and decode become one (sum, max) pair:
//
//     objective >= (prefill_sum * sum + decode_sum * sum') + (prefill_max * max + decode_max * max')
//
// For alpha in [0, 1], token step = max(round trip, G * max') >= alpha * round trip + (1 - alpha) * G * max'. Without
// token steps the form is exact. A resource of occupancies t, t' has weight prefill_sum * t + decode_sum * t' in the
// sum and prefill_max * t + decode_max * t' in the maximum; the maximum over the resources of the latter is at most the
// form's maximum. Computing counts with its seconds in the last micro-batch in the sum, and in those before it in the
// maximum.
struct Metric {
    double prefill_sum = 1;
    double decode_sum = 0;
    double prefill_max = 0;
    double decode_max = 0;
    double latency_sum = 1;           // weight of a link's latency in the sum
    double latency_max = 0;           // the same in the maximum (latency_occupies_link)
    std::vector<double> compute_sum;  // lanes x boundaries, prefix sums over the layers
    std::vector<double> compute_max;  // lanes x boundaries
    std::vector<double> start_sum;    // lanes x boundaries, less what a stage takes in addition to its layers
    std::vector<double> start_max;    // lanes x boundaries
    std::vector<double> compressed_sum;  // boundaries x levels, bytes: over a bandwidth, the weight of a link
    std::vector<double> compressed_max;  // boundaries x levels
    std::vector<double> code_sum;        // boundaries x levels, encode and decode
    std::vector<double> encode_max;      // boundaries x levels
    std::vector<double> open_max;        // boundaries: the least that decoding adds to the next stage
    std::vector<double> close_max;    // boundaries x nodes: the least that sending adds to the stage before
    std::vector<double> ingress_sum;  // nodes
    std::vector<double> ingress_max;  // nodes
    std::vector<double> egress_sum;   // nodes
    std::vector<double> egress_max;   // nodes
};

// One phase's occupancies: micro-batches, or token steps.
struct PhaseTables {
    std::vector<double> compute;  // lanes x boundaries, prefix sums
    std::vector<double>
        earlier_compute;             // the same of the micro-batches before the last; empty if all are alike
    std::vector<double> stage;       // lanes, what a stage takes in addition to its layers
    std::vector<double> compressed;  // boundaries x levels, bytes
    std::vector<double> encode;      // boundaries x levels
    std::vector<double> decode;      // boundaries x levels
    std::vector<double> growth;      // boundaries x nodes: the most that sending adds to the stage before

    // For the maximum, while `compute` is for the sum.
    const std::vector<double>& compute_max() const {
        return earlier_compute.empty() ? compute : earlier_compute;
    }
};

// The objective as weights of a plan's sums and maxima:
//
//     prefill_sum * sum + prefill_max * max + max(round_trip * sum', bottleneck * max')
struct Weights {
    double prefill_sum = 0;
    double prefill_max = 0;
    double round_trip = 0;
    double bottleneck = 0;
};

// What labels keep of a phase: only what has weight in the objective.
struct Tracks {
    bool sum = false;
    bool max = false;
};

struct Tables {
    int layers = 0;
    int nodes = 0;
    int levels = 0;
    int weight_levels = 1;
    bool generates = false;
    bool is_free = false;
    int threads = 1;  // that a relaxation may use
    bool needs_return =
        false;  // for some pair of last and first node there is no direct link to return tokens
    // Nodes: the slowest direct return to this first node, infinite if one is absent. Ways back along a chain that are
    // slower do not differ.
    std::vector<double> most_return_s;
    bool keeps_first = false;  // the first node is part of a label's state: tokens return to it
    Weights weights;
    Tracks tracks;          // of the prefill
    Tracks token_tracks;    // of a token step
    double loss_limit = 0;  // without a budget all finite losses are 0
    PhaseTables prefill;
    PhaseTables token;               // filled when the problem generates
    std::vector<double> loss;        // boundaries x levels; infinite: the boundary does not have the level
    std::vector<double> stage_loss;  // weight levels x starts x stops; empty: weights lose nothing
    std::vector<int> max_stop;       // lanes x boundaries: where the longest stage from here stops
    int k_cycle = 1;                 // a vertex remembers at most this many nodes, its own included
    std::vector<int> node_of;        // vertices
    std::vector<int> remembered;     // vertices: nodes remembered; fewer than k_cycle only at a chain's start
    std::vector<int> oldest;         // vertices: the first node remembered
    std::vector<int> start_vertex;   // nodes: where a chain starts, or -1
    std::vector<int> neighbour_start;   // vertices + 1
    std::vector<int> neighbour;         // vertices that may follow, in increasing index of their nodes
    std::vector<double> bandwidth;      // of the links to the neighbours, in the same order
    std::vector<double> s_per_byte;     // of these links, 1 / bandwidth
    std::vector<double> latency;        // of these links
    std::vector<char> half_duplex;      // nodes
    std::vector<char> can_start;        // nodes
    std::vector<char> can_end;          // nodes
    std::vector<double> ingress;        // nodes, occupancy
    std::vector<double> ingress_delay;  // nodes, propagation
    std::vector<double> egress;         // nodes
    std::vector<double> egress_delay;   // nodes
    double propagates =
        1;  // the weight of latency in addition to the occupancy: 0 with latency_occupies_link
    std::vector<std::uint64_t> node_key;  // free order, nodes: a set of nodes has the sum of their keys
    bool keys_are_exact = true;           // one bit for each node; else different sets may have equal keys
    std::vector<int> required;            // free order: nodes that must be used
    std::vector<int> ng_bit;              // nodes: bit in the bounds' visited set, -1 if not in the ng-set
    int ng_size = 0;
    unsigned required_ng = 0;   // the required nodes in the ng-set, as a visited set
    unsigned most_stages = 0;   // max_nodes if that limits plans, else unreachable
    unsigned count_step = 0;    // what one more stage adds to a visited set; 0 if stages are not counted
    unsigned visited_sets = 1;  // their number
    std::vector<Metric> metrics;

    int boundary_level(int boundary, int level) const { return boundary * levels + level; }
    int lanes() const { return nodes * weight_levels; }
    int lane(int node, int weight_level) const { return node * weight_levels + weight_level; }
    int lane_boundary(int lane, int boundary) const { return lane * (layers + 1) + boundary; }
    int boundary_node(int boundary, int node) const { return boundary * nodes + node; }
    bool has_level(int index) const { return loss[index] < std::numeric_limits<double>::infinity(); }
    bool has_weight_levels() const { return !stage_loss.empty(); }
    // The weight level of a stage as in Stage.
    int weight_level(int level) const { return has_weight_levels() ? level : no_level; }
    // By stop, nullptr if weights lose nothing.
    const double* stage_losses(int weight_level, int start) const {
        if (!has_weight_levels()) return nullptr;
        const std::size_t row = static_cast<std::size_t>(weight_level) * (layers + 1) + start;
        return stage_loss.data() + row * (layers + 1);
    }
    int vertices() const { return static_cast<int>(node_of.size()); }
};

// Where the longest stage from a boundary on a node stops, at any weight level.
inline int longest_stop(const Tables& t, int node, int start) {
    int longest = start;
    for (int w = 0; w < t.weight_levels; ++w)
        longest = std::max(longest, t.max_stop[t.lane_boundary(t.lane(node, w), start)]);
    return longest;
}

// Operations that one relaxation may take: they limit the ng-set.
inline constexpr double quick_operations = 5e5;
inline constexpr double thorough_operations = 1.5e8;

// Adds memory_relief_bytes to the memory of every node. If it must end early, growth is left infinite and open_max
// and close_max 0, which prunes less.
Tables make_tables(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                   double memory_relief_bytes = 0, double most_operations = quick_operations);

}  // namespace orbitsplit::planner
