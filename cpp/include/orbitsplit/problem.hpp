// The planner's input: layers, nodes, links, levels and limits as plain arrays, in SI units.
//
// Not here: how a plan is scored (cost.hpp) and how one is found (planner.hpp).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "orbitsplit/export.hpp"

namespace orbitsplit {

struct ProblemNode {
    std::string name;
    double memory_bytes = 0;
    double headroom_bytes = 0;  // memory the user keeps free
    bool half_duplex = false;   // cannot compute and transmit at once
};

// One rate-distortion point of a codec, as the planner sees it. Seconds are per original byte.
struct Level {
    std::string name;
    double ratio = 1;  // original / compressed
    double encode_s_per_byte = 0;
    double decode_s_per_byte = 0;
};

// One precision of the weights, of which every stage has one. What it costs and loses is in the problem's arrays.
struct WeightLevel {
    std::string name;
};

// Where a micro-batch comes from (ingress) or its result goes (egress): one link to or from every node.
struct ExternalLink {
    double bytes = 0;
    std::vector<double> bandwidth_bytes_per_s;  // nodes; 0: that node cannot be first (last)
    std::vector<double> latency_s;              // nodes
};

struct Pin {
    int layer = 0;
    int node = 0;
};

struct Pins {
    std::vector<Pin> layers;     // this layer runs on this node
    std::vector<int> required;   // these nodes take part
    std::vector<int> forbidden;  // these nodes do not
};

enum class Order {
    fixed,  // stages take nodes of increasing index, any may be skipped
    free,   // any subset of the nodes in any order
};

// Matrices are row-major. An empty array of those that may be empty means that the problem has none. Without weight
// levels the arrays of memory and times have one block, and weights lose nothing.
struct Problem {
    std::string name;
    std::vector<std::string> layers;
    std::vector<ProblemNode> nodes;
    std::vector<double> layer_memory_bytes;  // weight levels x layers
    std::vector<double> layer_time_s;        // weight levels x nodes x layers, per micro-batch
    // Of the same shape, where the micro-batches are not alike: the mean of those before the last one. layer_time_s is
    // then that of the last one. May be empty: all take layer_time_s.
    std::vector<double> layer_earlier_time_s;
    std::vector<double> layer_decode_time_s;  // weight levels x nodes x layers, per token step; may be empty
    std::vector<double> cut_bytes;            // layers - 1
    std::vector<double> cut_decode_bytes;     // layers - 1; may be empty
    std::vector<double> bandwidth_bytes_per_s;  // nodes x nodes, directed; 0: no link
    std::vector<double> latency_s;              // nodes x nodes
    std::vector<Level> levels;
    std::vector<double> loss;           // (layers - 1) x levels; infinite: the cut does not have the level
    std::optional<double> loss_budget;  // none: no limit
    std::vector<WeightLevel> weight_levels;
    std::vector<double> weight_loss;  // weight levels x layers; infinite: the layer does not have the level
    long long micro_batches = 1;
    long long new_tokens = 0;         // 0 or 1: prefill only
    std::optional<long long> groups;  // none: one for each micro-batch
    double tokens_per_step = 1;       // that a step gives each sequence on average: more than 1 with guesses
    std::optional<ExternalLink> ingress;
    std::optional<ExternalLink> egress;
    Order order = Order::fixed;
    bool latency_occupies_link = false;
    Pins pins;
    // What a stage on a node takes in addition to its layers, whichever they are: for each micro-batch, also
    // those before the last one, and for each token step. May be empty: nothing.
    std::vector<double> stage_overhead_s;         // weight levels x nodes
    std::vector<double> stage_decode_overhead_s;  // weight levels x nodes
};

// Throws std::invalid_argument naming the key, the index, the value and the limit.
ORBITSPLIT_API void validate(const Problem& problem);

// A problem that was validated once, for many calls of evaluate() and solve(). It does not change, so threads may share
// it; copies share one problem.
class ORBITSPLIT_API PreparedProblem {
  public:
    // Throws what validate() throws.
    explicit PreparedProblem(Problem problem);

    const Problem& problem() const { return *problem_; }

  private:
    std::shared_ptr<const Problem> problem_;
};

}  // namespace orbitsplit
