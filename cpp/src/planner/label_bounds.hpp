// The bounds of cost_to_go.hpp for one metric.
#pragma once

#include <vector>

#include "planner/label.hpp"
#include "planner/root.hpp"

namespace orbitsplit::planner {

class LabelBounds {
  public:
    LabelBounds(const Tables& t, const Metric& metric, const std::vector<Interval>& intervals);

    // The least objective of a plan that extends the label and improves on the incumbent, infinite where none can.
    // `at` is the label's state(), as in cost_to_go.hpp.
    double bound(const Label& label, std::size_t at) const;

  private:
    struct Band {
        double low;
        std::size_t first;  // columns of its relaxations
        std::size_t stop;
    };

    double decode_sum_;
    double prefill_max_;
    double decode_max_;
    double loss_limit_;
    std::vector<Band> bands_;
    std::vector<double> multipliers_;      // columns
    std::vector<const double*> departed_;  // columns; owned by the intervals' relaxations
    std::vector<const double*> arrived_;
};

}  // namespace orbitsplit::planner
