/* scaling.c - `effnet scaling`: how much faster with more ranks, and where the time goes. */
#include "trainer/scaling_predict.h"

en_status en_command_scaling(const en_options *o)
{
    EN_REQUIRE(o->predict, EN_EUSAGE, "say --predict: effnet scaling --predict --model b7 --cluster launch/clusters/h200-ndr.txt --gpus 8,64,512");
    return en_scaling_predict(o);
}
