// What the planner derives from a problem and an objective once: flat arrays that its inner loops read.
//
// Boundaries are numbered 0..layers: boundary i lies before layer i, so that cut i - 1 crosses boundary i.
//
// A place is a node together with the last nodes that a chain was on before it: relaxations and labels go from place
// to place. At first every node is one place; places.hpp lets them remember more, so that chains repeat less.
#pragma once

#include <cstdint>
#include <vector>

#include "orbitsplit/planner.hpp"

namespace orbitsplit::planner {

// A linear form under which prefill and decode become one (sum, max) pair:
//
//     objective >= (prefill_sum * sum + decode_sum * sum') + (prefill_max * max + decode_max * max')
//
// With alpha in [0, 1], token step = max(lap, G * max') >= alpha * lap + (1 - alpha) * G * max'. Where tokens do
// not count the form is exact. A resource of occupancies t, t' has weight prefill_sum * t + decode_sum * t' in the sum and
// prefill_max * t + decode_max * t' in the maximum; the maximum of the latter is at most the form's maximum.
struct Metric {
    double prefill_sum = 1;
    double decode_sum = 0;
    double prefill_max = 0;
    double decode_max = 0;
    double latency_sum = 1;           // weight of a link's latency in the sum
    double latency_max = 0;           // and in the maximum (latency_occupies_link)
    std::vector<double> compute_sum;  // nodes x boundaries, prefix sums over the layers
    std::vector<double> compute_max;  // nodes x boundaries
    std::vector<double> packed_sum;   // boundaries x levels, bytes: by a bandwidth, the link's weight
    std::vector<double> packed_max;   // boundaries x levels
    std::vector<double> code_sum;     // boundaries x levels, encode and decode
    std::vector<double> encode_max;   // boundaries x levels
    std::vector<double> open_max;     // boundaries, the least that decoding adds to the stage after it
    std::vector<double> close_max;  // boundaries x nodes, the least that leaving adds to the stage before it
    std::vector<double> ingress_sum;  // nodes
    std::vector<double> ingress_max;  // nodes
    std::vector<double> egress_sum;   // nodes
    std::vector<double> egress_max;   // nodes
};

// One phase's occupancies: micro-batches, or token steps.
struct PhaseTables {
    std::vector<double> compute;  // nodes x boundaries, prefix sums
    std::vector<double> packed;   // boundaries x levels, compressed bytes
    std::vector<double> encode;   // boundaries x levels
    std::vector<double> decode;   // boundaries x levels
    std::vector<double> growth;   // boundaries x nodes, the most that leaving adds to the stage before it
};

// The objective as weights of a plan's sums and maxima:
//
//     prefill_sum * sum + prefill_max * max + max(lap * sum', busiest * max')
struct Weights {
    double prefill_sum = 0;
    double prefill_max = 0;
    double lap = 0;
    double busiest = 0;
};

// What labels keep of a phase: that which the objective weighs.
struct Tracks {
    bool sum = false;
    bool max = false;
};

struct Tables {
    int layers = 0;
    int nodes = 0;
    int levels = 0;
    bool generates = false;
    bool is_free = false;
    bool needs_back = false;   // some pair lacks the direct link that would return its tokens
    bool keeps_first = false;  // the first node is part of a label's state: tokens return to it
    Weights weights;
    Tracks tracks;          // of the prefill
    Tracks token_tracks;    // of a token step
    double loss_limit = 0;  // without a budget every loss counts as 0
    PhaseTables prefill;
    PhaseTables token;                  // filled when the problem generates
    std::vector<double> loss;           // boundaries x levels
    std::vector<int> max_stop;          // nodes x boundaries: where the longest stage from here stops
    int memory = 1;                     // nodes that a place remembers at most, its own included
    std::vector<int> node_of;           // places
    std::vector<int> remembered;        // places: nodes remembered; fewer than memory only at a chain's start
    std::vector<int> oldest;            // places: the first node remembered
    std::vector<int> start_place;       // nodes: where a chain starts, or -1
    std::vector<int> neighbour_start;   // places + 1
    std::vector<int> neighbour;         // places that may follow, in increasing index of their nodes
    std::vector<double> bandwidth;      // links to the neighbours, in the same order
    std::vector<double> pace;           // of these links, 1 / bandwidth
    std::vector<double> latency;        // of these links
    std::vector<char> half_duplex;      // nodes
    std::vector<char> can_start;        // nodes
    std::vector<char> can_end;          // nodes
    std::vector<double> ingress;        // nodes, occupancy
    std::vector<double> ingress_delay;  // nodes, propagation
    std::vector<double> egress;         // nodes
    std::vector<double> egress_delay;   // nodes
    double propagates = 1;  // 0 with latency_occupies_link: what latency weighs beside the occupancy
    std::vector<std::uint64_t> mark;  // free order: nodes, what each adds to the mark of a set of used nodes
    bool marks_are_exact = true;      // one bit each: the mark is the set; else sets of one mark may differ
    std::vector<int> required;        // free order: nodes that must be used
    std::vector<int> tracked_bit;     // nodes: bit in the bounds' past, or -1 where they let the node repeat
    int tracked = 0;
    unsigned required_tracked = 0;  // the required nodes among the tracked ones
    unsigned most_stages = 0;       // max_nodes where it is less than any plan could use, else unreachable
    unsigned count_step = 0;        // what one more stage adds to a past; 0 where stages are not counted
    unsigned pasts = 1;             // how many there are
    std::vector<Metric> metrics;

    int boundary_level(int boundary, int level) const { return boundary * levels + level; }
    int node_boundary(int node, int boundary) const { return node * (layers + 1) + boundary; }
    int boundary_node(int boundary, int node) const { return boundary * nodes + node; }
    int places() const { return static_cast<int>(node_of.size()); }
};

// What one relaxation may cost: tracked nodes are chosen by it.
inline constexpr double quick_operations = 2e6;
inline constexpr double thorough_operations = 1.5e8;

// memory_relief_bytes is added to what every node can hold.
Tables make_tables(const Problem& problem, const SolveOptions& options, double memory_relief_bytes = 0,
                   double most_operations = quick_operations);

}  // namespace orbitsplit::planner
