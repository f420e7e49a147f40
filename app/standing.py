"""What an active subscription is told, and when: the rule of Parlay X's criteria, frequency, count and duration. (Follows.)"""
